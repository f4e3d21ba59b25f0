/* Attention of a few rows over the cache, read in place.
 *
 * Keys are read in chunks whose borders depend on the position alone, and chunks are merged in order by online softmax. So no
 * bit of a row depends on the other rows of the call, nor on what lies behind its keys. */
#ifndef ORTHRUS_ATTENTION_H
#define ORTHRUS_ATTENTION_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention_amx.h"
#include "attention_chunk.h"
#include "attention_scratch.h"
#include "attention_tree.h"
#include "attention_vector.h"
#include "kv_cache.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

_Static_assert(PAGE % KEY_CHUNK == 0, "a chunk of keys must lie in one page");
/* The most rows of a segment that attend together. */
enum { ATTENTION_MAX_ROWS = 32 };

/* Query rows of one segment and one kv head: `rows` rows of the pass, `heads` apart in q and out, with `group` heads each. */
typedef struct {
    const scalar_t *q;
    scalar_t *out;
    const int64_t *kv_lens, *kv_starts;
    int64_t rows, group, stride;
    Scores how;
} QueryRows;

static void begin_rows(const QueryRows *in, const AttentionScratch *scratch, int64_t size) {
    int64_t rows = in->rows * in->group;
    for (int64_t r = 0; r < rows; r++) {
        copy_query(in->q + r / in->group * in->stride + r % in->group * size, size, scratch->queries + r * size);
        scratch->max[r] = -INFINITY, scratch->denominator[r] = 0.0f;
    }
    memset(scratch->sums, 0, rows * size * sizeof(float));
    memset(scratch->queries + rows * size, 0, ((rows + 15) / 16 * 16 - rows) * size * sizeof(query_t));
}

static void finish_rows(const QueryRows *in, const AttentionScratch *scratch, int64_t size) {
    for (int64_t r = 0; r < in->rows * in->group; r++) {
        scalar_t *to = in->out + r / in->group * in->stride + r % in->group * size;
        const float *sums = scratch->sums + r * size;
        for (int64_t i = 0; i < size; i += LANES)
            store_lanes(to + i, f32_div(f32_load(sums + i), f32_set1(scratch->denominator[r])));
    }
}

/* How many keys of the chunk that begins at `start` each query row attends to, and from which on. */
static void limit_rows(const QueryRows *in, const AttentionScratch *scratch, int64_t start, int64_t count) {
    for (int64_t r = 0; r < in->rows * in->group; r++) {
        int64_t left = in->kv_lens[r / in->group] - start;
        int64_t hidden = in->kv_starts ? in->kv_starts[r / in->group] - start : 0;
        scratch->visible[r] = left < 0 ? 0 : left < count ? left : count;
        scratch->hidden[r] = hidden < 0 ? 0 : hidden < count ? hidden : count;
    }
}

/* The keys of the rows from `first` on. */
static RowKeys keys_of(const KVCache *cache, const AttentionMetadata *metadata, const Segment *segment, int64_t kv_head,
                       int64_t first) {
    int64_t head = kv_head * cache->head_stride;
    RowKeys keys = {.keys = cache->keys + head, .values = cache->values + head, .start = INT64_MAX, .size = cache->head_dim};
    keys.pages = metadata->block_tables + segment->sequence * metadata->table_columns;
    if (metadata->row_paths && metadata->row_paths[first] >= 0) {
        keys.row_paths = metadata->row_paths + first, keys.path_tables = metadata->path_tables;
        keys.path_columns = metadata->path_columns, keys.start = keys.path_tables[keys.row_paths[0] * keys.path_columns];
    }
    return keys;
}

static void attend_rows(const QueryRows *in, const Segment *segment, const RowKeys *from, const AttentionScratch *scratch) {
    int64_t size = from->size, rows = in->rows * in->group, longest = 0, first = in->kv_starts ? in->kv_starts[0] : 0;
    for (int64_t r = 0; r < in->rows; r++) {
        longest = in->kv_lens[r] > longest ? in->kv_lens[r] : longest;
        first = in->kv_starts && in->kv_starts[r] < first ? in->kv_starts[r] : first;
    }
    begin_rows(in, scratch, size);
    for (int64_t start = first / KEY_CHUNK * KEY_CHUNK; start < longest; start += KEY_CHUNK) {
        int64_t count = longest - start < KEY_CHUNK ? longest - start : KEY_CHUNK, at = slot_of(from->pages, start) * size;
        limit_rows(in, scratch, start, count);
        if (start + count > from->start) attend_tree_chunk(scratch, from, start, count, in->how);
        else attend_chunk(scratch, rows, from->keys + at, from->values + at, count, size, in->how);
    }
    for (int64_t start = segment->own_start; start < segment->own_stop; start += KEY_CHUNK) {
        int64_t count = segment->own_stop - start < KEY_CHUNK ? segment->own_stop - start : KEY_CHUNK;
        for (int64_t r = 0; r < rows; r++) scratch->visible[r] = count, scratch->hidden[r] = 0;
        int64_t at = slot_of(from->pages, start) * size;
        attend_chunk(scratch, rows, from->keys + at, from->values + at, count, size, in->how);
    }
    finish_rows(in, scratch, size);
}

/* What the threads share: q [rows, heads, head_dim] to out, for all segments and kv heads. */
typedef struct {
    const scalar_t *q;
    scalar_t *out;
    int64_t heads;
    const KVCache *cache;
    const AttentionMetadata *metadata;
} AttentionCall;

/* The rows of one segment from `begin` to `end`, for the query heads of one kv head. */
static void attend_segment(const AttentionCall *call, const Segment *segment, int64_t kv_head, int64_t begin, int64_t end,
                           const AttentionScratch *scratch) {
    const AttentionMetadata *metadata = call->metadata;
    int64_t size = call->cache->head_dim, group = call->heads / call->cache->kv_heads;
    const Scores how = {metadata->scale > 0.0f ? metadata->scale : 1.0f / sqrtf((float)size), metadata->soft_cap};
    for (int64_t r = begin; r < end; r += ATTENTION_MAX_ROWS) {
        int64_t rows = end - r < ATTENTION_MAX_ROWS ? end - r : ATTENTION_MAX_ROWS, first = segment->first_row + r;
        int64_t offset = (first * call->heads + kv_head * group) * size;
        const int64_t *starts = metadata->kv_starts ? metadata->kv_starts + first : 0;
        QueryRows in = {
            call->q + offset, call->out + offset, metadata->kv_lens + first, starts, rows, group, call->heads * size, how,
        };
        RowKeys keys = keys_of(call->cache, metadata, segment, kv_head, first);
        keys.rows = rows, keys.group = group;
        attend_rows(&in, segment, &keys, scratch);
    }
}

/* The thread's share. Each thread takes whole heads of a segment, as many as all have; the rows of those that are left are
 * divided, though every thread then packs the same keys. */
static void attention_share(const AttentionCall *call, char *memory, Thread thread) {
    int64_t size = call->cache->head_dim, kv_heads = call->cache->kv_heads, T = thread.count;
    int64_t tasks = call->metadata->num_segments * kv_heads, whole = tasks / T * T, left = tasks - whole;
    int64_t pieces = left ? (T + left - 1) / left : 1;
    AttentionScratch scratch = attention_scratch(memory, ATTENTION_MAX_ROWS * (call->heads / kv_heads), size);
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) configure_row_tiles(2 * TILE_ROWS);
#endif
    for (int64_t work = thread.index; work < whole + left * pieces; work += T) {
        int64_t divided = work >= whole, task = divided ? whole + (work - whole) / pieces : work;
        const Segment *segment = call->metadata->segments + task / kv_heads;
        Range rows = {0, segment->rows};
        if (divided) rows = split(segment->rows, (Thread){(work - whole) % pieces, pieces});
        attend_segment(call, segment, task % kv_heads, rows.begin, rows.end, &scratch);
    }
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) _tile_release();
#endif
}

static void attention_call_share(void *argument, Thread thread) {
    const AttentionCall *call = argument;
    int64_t group = call->heads / call->cache->kv_heads, size = call->cache->head_dim;
    int64_t bytes = attention_scratch_bytes(ATTENTION_MAX_ROWS * group, size);
    char *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    attention_share(call, memory, thread);
    free(memory);
}

/* out = softmax(q k scale) v; q, out [rows, heads, head_dim]. */
void attention(const scalar_t *q, scalar_t *out, int64_t heads, const KVCache *cache, const AttentionMetadata *metadata,
               int64_t threads) {
    parallel(threads, attention_call_share, &(AttentionCall){q, out, heads, cache, metadata});
}

#endif
