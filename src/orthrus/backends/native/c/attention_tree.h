/* Attention of the rows of a tree over a chunk with keys of the tree.
 *
 * Up to the position where the tree begins, all rows have the same keys. From there on, a row has the key of its ancestor at
 * each position. A score does not depend on where its key is, so every key of the tree is scored once for all rows, and then
 * each row's scores are put in order of position. Weighted sums go over the common keys for all rows together, as far as these
 * are whole groups of keys that the instructions sum together, and then over the values on the path of each row. So a row has
 * the bits that it has in a chain of its ancestors. */
#ifndef ORTHRUS_ATTENTION_TREE_H
#define ORTHRUS_ATTENTION_TREE_H

#include <stdint.h>
#include <string.h>

#include "attention_amx.h"
#include "attention_chunk.h"
#include "attention_scratch.h"
#include "kv_cache.h"
#include "pack.h"
#include "simd.h"

/* Keys that an instruction on vectors sums together. */
#ifdef ATTENTION_IN_PAIRS
enum { KEYS_PER_SUM = 2 };
#else
enum { KEYS_PER_SUM = 1 };
#endif

/* The keys and values [slot, size] of one kv head, and where in them those of the rows of a segment are, with `group` query
 * rows each. The paths of a tree begin at the position `start`, which no position reaches in a chain; see
 * `AttentionMetadata` for row_paths and path_tables. */
typedef struct {
    const scalar_t *keys, *values;
    const int64_t *pages, *row_paths, *path_tables;
    int64_t path_columns, start, rows, group, size;
} RowKeys;

/* The part of a chunk that begins at the position `first`: `known` keys common to all rows, then keys of the tree. */
typedef struct {
    int64_t first, known, padded;
} TreeChunk;

/* The place in the sequence of the key that a row has at a position. */
static inline int64_t place_of(const RowKeys *keys, int64_t row, int64_t position) {
    if (position < keys->start) return position;
    return keys->path_tables[keys->row_paths[row] * keys->path_columns + 1 + position - keys->start];
}

static inline const scalar_t *value_of(const RowKeys *keys, int64_t row, int64_t position) {
    return keys->values + slot_of(keys->pages, place_of(keys, row, position)) * keys->size;
}

/* The end of the rows from `row` on that have the same keys. */
static inline int64_t end_of_equal_rows(const RowKeys *keys, const AttentionScratch *scratch, int64_t row) {
    int64_t end = row + 1;
    while (end < keys->rows && keys->row_paths[end] == keys->row_paths[row] &&
           scratch->visible[end * keys->group] == scratch->visible[row * keys->group])
        end++;
    return end;
}

/* The scores of the keys of the tree. Those on the path of a row behind the common keys, in order of position. */
static void score_tree(const AttentionScratch *scratch, const RowKeys *keys, const TreeChunk *chunk) {
    int64_t begin = INT64_MAX, stop = 0, query_rows = keys->rows * keys->group;
    for (int64_t r = 0; r < keys->rows; r++) {
        int64_t visible = scratch->visible[r * keys->group];
        if (visible <= chunk->known) continue;
        int64_t lowest = place_of(keys, r, chunk->first + chunk->known); /* places ascend on a path */
        int64_t highest = place_of(keys, r, chunk->first + visible - 1);
        begin = lowest < begin ? lowest : begin, stop = highest >= stop ? highest + 1 : stop;
    }
    AttentionScratch by_place = *scratch;
    by_place.weights = scratch->tree;
    for (int64_t end; begin < stop; begin = end) {
        end = begin / KEY_CHUNK * KEY_CHUNK + KEY_CHUNK;
        end = end < stop ? end : stop;
        int64_t at = slot_of(keys->pages, begin) * keys->size;
        score_chunk(&by_place, query_rows, keys->keys + at, keys->values + at, end - begin, keys->size);
        for (int64_t r = 0; r < query_rows; r++)
            for (int64_t j = chunk->known; j < scratch->visible[r]; j++) {
                int64_t place = place_of(keys, r / keys->group, chunk->first + j);
                if (place >= begin && place < end)
                    scratch->weights[r * KEY_CHUNK + j] = by_place.weights[r * KEY_CHUNK + place - begin];
            }
    }
}

/* All weighted sums of a chunk on vectors. */
static void sum_tree_vector(const AttentionScratch *scratch, const RowKeys *keys, const TreeChunk *chunk) {
    int64_t size = keys->size, common = chunk->known / KEYS_PER_SUM * KEYS_PER_SUM;
    const scalar_t *together = keys->values + slot_of(keys->pages, chunk->first) * size;
    weighted_sum_vector(scratch, keys->rows * keys->group, together, common, size);
    for (int64_t r = 0; r < keys->rows * keys->group; r++) scratch->rescale[r] = 1.0f;
    scalar_t *values = (scalar_t *)scratch->packed_keys;
    for (int64_t row = 0, end; row < keys->rows; row = end) {
        end = end_of_equal_rows(keys, scratch, row);
        int64_t query = row * keys->group, visible = scratch->visible[query];
        if (visible <= common) continue;
        for (int64_t j = common; j < visible; j++)
            memcpy(values + (j - common) * size, value_of(keys, row, chunk->first + j), size * sizeof(scalar_t));
        AttentionScratch rest = *scratch;
        rest.weights += query * KEY_CHUNK + common / KEYS_PER_SUM;
        rest.rescale += query, rest.sums += query * size, rest.visible += query;
        weighted_sum_vector(&rest, (end - row) * keys->group, values, visible - common, size);
    }
}

#ifdef HAVE_ATTENTION_AMX
/* The values of a row from the position `known`, rounded down to pairs, in pairs as in `pack_values`. */
static void pack_path(const RowKeys *keys, const TreeChunk *chunk, int64_t row, int64_t visible, scalar_t *pairs) {
    int64_t size = keys->size;
    for (int64_t j = chunk->known / 2 * 2; j < visible; j += 2) {
        const scalar_t *v = value_of(keys, row, chunk->first + j), *next = v;
        if (j + 1 < visible) next = value_of(keys, row, chunk->first + j + 1);
        for (int64_t i = 0; i < size; i += 32) {
            i32x16 interleaved[2];
            interleave_pairs(v + i, visible - j, next - v, ~0u, interleaved);
            i32_store(pairs + j * size + 2 * i, interleaved[0]);
            i32_store(pairs + j * size + 2 * i + 32, interleaved[1]);
        }
    }
}

/* All weighted sums of a chunk on tiles. The sums of whole tiles of common keys go on for each row from where they are. */
static void sum_tree_amx(const AttentionScratch *scratch, const RowKeys *keys, const TreeChunk *chunk) {
    int64_t size = keys->size, common = chunk->known / 32 * 32, query_rows = keys->rows * keys->group;
    scalar_t *pairs = value_pairs(scratch, size);
    pack_values(keys->values + slot_of(keys->pages, chunk->first) * size, pairs, chunk->known, chunk->padded, size);
    for (int64_t r = 0; r < query_rows; r += 16)
        for (int64_t i = 0; i < size; i += 32) {
            _tile_zero(0);
            _tile_zero(1);
            multiply_values(scratch, pairs, r, i, 0, common, size);
            _tile_stored(0, scratch->tree + r * size + i, size * 4);
            _tile_stored(1, scratch->tree + r * size + i + 16, size * 4);
        }
    for (int64_t row = 0, end; row < keys->rows; row = end) {
        end = end_of_equal_rows(keys, scratch, row);
        int64_t visible = scratch->visible[row * keys->group];
        pack_path(keys, chunk, row, visible, pairs);
        for (int64_t r = row * keys->group; r < end * keys->group; r += 16)
            for (int64_t i = 0; i < size; i += 32) {
                _tile_loadd(0, scratch->tree + r * size + i, size * 4);
                _tile_loadd(1, scratch->tree + r * size + i + 16, size * 4);
                multiply_values(scratch, pairs, r, i, common, visible, size);
                add_products(scratch, r, end * keys->group, i, size);
            }
    }
}
#endif

/* The chunk that begins at the position `first`, of whose `count` keys those from keys->start on are keys of the tree. */
static void attend_tree_chunk(const AttentionScratch *scratch, const RowKeys *keys, int64_t first, int64_t count, Scores how) {
    int64_t size = keys->size, known = keys->start > first ? keys->start - first : 0, query_rows = keys->rows * keys->group;
    const TreeChunk chunk = {first, known, padded_keys(count, size)};
    int64_t at = slot_of(keys->pages, first) * size;
    if (known) score_chunk(scratch, query_rows, keys->keys + at, keys->values + at, known, size);
    score_tree(scratch, keys, &chunk);
    softmax_chunk(scratch, query_rows, chunk.padded, how);
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) {
        sum_tree_amx(scratch, keys, &chunk);
        return;
    }
#endif
    sum_tree_vector(scratch, keys, &chunk);
}

#endif
