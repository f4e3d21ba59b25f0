/* Attention of a few rows over the cache, read in place.
 *
 * Keys are read in chunks whose borders depend on the position alone, and chunks are merged in order by online softmax. For
 * keys that it does not attend to, a row computes nothing or, on tiles, adds zeros. So no bit of a row depends on the other
 * rows of the call, nor on what lies behind its keys. */
#ifndef ORTHRUS_ATTENTION_H
#define ORTHRUS_ATTENTION_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention_amx.h"
#include "attention_scratch.h"
#include "attention_vector.h"
#include "float_state.h"
#include "kv_cache.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_ATTENTION
_Static_assert(PAGE % KEY_CHUNK == 0, "a chunk of keys must lie in one page");
/* The most rows of a segment that attend together. */
enum { ATTENTION_MAX_ROWS = 32 };

int has_attention(void) { return 1; }

/* The scores of a chunk on vectors. Few sums at a time would wait for one another. */
static void qk_scores_vector(const AttentionScratch *scratch, int64_t rows, int64_t panels, int64_t words) {
    for (int64_t r = 0, taken; r < rows; r += taken) {
        int64_t left = rows - r;
        taken = left > 9 || left == 8 ? 8 : left >= 6 ? 6 : left == 5 ? 3 : left;
        for (int64_t c = 0; c < panels; c += taken < 6 ? 2 : 1) { /* there is room for a panel too many, which is not read */
            const int32_t *keys = scratch->packed_keys + 16 * c * words;
            const scalar_t **q = scratch->q + r;
            float *scores = scratch->weights + r * KEY_CHUNK + 16 * c;
            switch (taken) {
            case 8: qk_scores(q, keys, words, scores, 8, 1); break;
            case 6: qk_scores(q, keys, words, scores, 6, 1); break;
            case 4: qk_scores(q, keys, words, scores, 4, 2); break;
            case 3: qk_scores(q, keys, words, scores, 3, 2); break;
            case 2: qk_scores(q, keys, words, scores, 2, 2); break;
            default: qk_scores(q, keys, words, scores, 1, 2);
            }
        }
    }
}

/* The weighted sums of a chunk on vectors, no further than each group of rows attends. */
static void weighted_sum_vector(const AttentionScratch *scratch, int64_t rows, const scalar_t *v, int64_t size) {
    for (int64_t s = 0; s < size; s += FEATURE_SLICE)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = rows - r >= 6 ? 6 : rows - r >= 3 ? 3 : 1;
            int64_t count = 0;
            for (int64_t i = r; i < r + taken; i++) count = scratch->visible[i] > count ? scratch->visible[i] : count;
            const float *weights = scratch->weights + r * KEY_CHUNK, *rescale = scratch->rescale + r;
            float *sums = scratch->sums + r * size + s;
            if (size - s < FEATURE_SLICE) {
                for (int64_t p = 0; p < size - s; p += LANES)
                    for (int64_t i = 0; i < taken; i++)
                        weighted_sum(weights + i * KEY_CHUNK, rescale + i, v + s + p, count, size, sums + i * size + p, 1, 1);
            } else if (taken == 6) weighted_sum(weights, rescale, v + s, count, size, sums, 6, 4);
            else if (taken == 3) weighted_sum(weights, rescale, v + s, count, size, sums, 3, 4);
            else weighted_sum(weights, rescale, v + s, count, size, sums, 1, 4);
        }
}

/* All scores of a chunk of `count` keys; returns for how many keys there are any. */
static int64_t score_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *k, int64_t count, int64_t size) {
    int64_t words = size * (int64_t)sizeof(scalar_t) / 4, panels = (count + 15) / 16;
    pack_keys(k, count, words, scratch->packed_keys);
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) {
        qk_scores_amx(scratch, rows, panels, size);
        return 16 * ((panels + 1) / 2 * 2);
    }
#endif
    qk_scores_vector(scratch, rows, panels, words);
    return 16 * panels;
}

/* All weighted sums of a chunk of `count` keys, of whose `padded` weights those that a row does not attend to are zero. */
static void sum_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *v, int64_t count, int64_t padded,
                      int64_t size) {
#ifdef BFLOAT16
    for (int64_t r = 0; r < rows; r++) narrow_to_bf16(scratch->weights + r * KEY_CHUNK, padded);
#endif
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) {
        scalar_t *pairs = (scalar_t *)(scratch->packed_keys + KEY_CHUNK * size / 2);
        pack_values(v, pairs, count, padded, size);
        weighted_sum_amx(scratch, pairs, rows, padded, size);
        return;
    }
#endif
    (void)count, (void)padded;
    weighted_sum_vector(scratch, rows, v, size);
}

/* One chunk of `count` keys, of which query row r attends to those from hidden[r] to visible[r]. */
static void attend_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *k, const scalar_t *v, int64_t count,
                         int64_t size, Scores how) {
    int64_t padded = score_chunk(scratch, rows, k, count, size);
    for (int64_t r = 0; r < rows; r++) {
        float before = scratch->max[r];
        int64_t hidden = scratch->hidden[r], visible = scratch->visible[r];
        float sum = softmax_weights(scratch->weights + r * KEY_CHUNK, hidden, visible, padded, how, scratch->max + r);
        scratch->rescale[r] = visible > hidden ? expf(before - scratch->max[r]) : 1.0f;
        scratch->denominator[r] = scratch->denominator[r] * scratch->rescale[r] + sum;
    }
    sum_chunk(scratch, rows, v, count, padded, size);
}

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
        scratch->q[r] = in->q + r / in->group * in->stride + r % in->group * size;
        scratch->max[r] = -INFINITY, scratch->denominator[r] = 0.0f;
    }
    memset(scratch->sums, 0, rows * size * sizeof(float));
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) pack_queries(scratch->q, scratch->packed_q, rows, size);
#endif
}

static void finish_rows(const QueryRows *in, const AttentionScratch *scratch, int64_t size) {
    for (int64_t r = 0; r < in->rows * in->group; r++) {
        scalar_t *to = in->out + r / in->group * in->stride + r % in->group * size;
        const float *sums = scratch->sums + r * size;
        for (int64_t i = 0; i < size; i += LANES)
            store_lanes(to + i, _mm512_div_ps(_mm512_loadu_ps(sums + i), _mm512_set1_ps(scratch->denominator[r])));
    }
}

/* pages of the sequence; keys, values [slot, size] of the kv head. */
static void attend_rows(const QueryRows *in, const Segment *segment, const int64_t *pages, const scalar_t *keys,
                        const scalar_t *values, int64_t size, const AttentionScratch *scratch) {
    int64_t rows = in->rows * in->group, longest = 0, first = in->kv_starts ? in->kv_starts[0] : 0;
    for (int64_t r = 0; r < in->rows; r++) {
        longest = in->kv_lens[r] > longest ? in->kv_lens[r] : longest;
        first = in->kv_starts && in->kv_starts[r] < first ? in->kv_starts[r] : first;
    }
    begin_rows(in, scratch, size);
    for (int64_t start = first / KEY_CHUNK * KEY_CHUNK; start < longest; start += KEY_CHUNK) {
        int64_t count = longest - start < KEY_CHUNK ? longest - start : KEY_CHUNK;
        for (int64_t r = 0; r < rows; r++) {
            int64_t left = in->kv_lens[r / in->group] - start;
            int64_t hidden = in->kv_starts ? in->kv_starts[r / in->group] - start : 0;
            scratch->visible[r] = left < 0 ? 0 : left < count ? left : count;
            scratch->hidden[r] = hidden < 0 ? 0 : hidden < count ? hidden : count;
        }
        int64_t at = slot_of(pages, start) * size;
        attend_chunk(scratch, rows, keys + at, values + at, count, size, in->how);
    }
    for (int64_t start = segment->own_start; start < segment->own_stop; start += KEY_CHUNK) {
        int64_t count = segment->own_stop - start < KEY_CHUNK ? segment->own_stop - start : KEY_CHUNK;
        for (int64_t r = 0; r < rows; r++) scratch->visible[r] = count, scratch->hidden[r] = 0;
        int64_t at = slot_of(pages, start) * size;
        attend_chunk(scratch, rows, keys + at, values + at, count, size, in->how);
    }
    finish_rows(in, scratch, size);
}

/* The thread's share: q [rows, heads, head_dim] of all segments to out. */
static void attention_share(const scalar_t *q, scalar_t *out, int64_t heads, const KVCache *cache,
                            const AttentionMetadata *metadata, char *memory, Thread thread) {
    int64_t size = cache->head_dim, kv_heads = cache->kv_heads, group = heads / kv_heads, T = thread.count;
    int64_t tasks = metadata->num_segments * kv_heads;
    int64_t pieces = tasks % T && metadata->segments[0].rows >= T ? T : 1; /* rows are divided too where heads do not divide */
    AttentionScratch scratch = attention_scratch(memory, ATTENTION_MAX_ROWS * group, size);
    const Scores how = {metadata->scale > 0.0f ? metadata->scale : 1.0f / sqrtf((float)size), metadata->soft_cap};
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) configure_row_tiles(2 * TILE_ROWS);
#endif
    for (int64_t task = thread.index; task < tasks * pieces; task += T) {
        const Segment *segment = metadata->segments + task / pieces / kv_heads;
        int64_t g = task / pieces % kv_heads, piece = (task + g) % pieces; /* no thread gets the larger piece of every head */
        int64_t begin = segment->rows * piece / pieces, end = segment->rows * (piece + 1) / pieces;
        const int64_t *pages = metadata->block_tables + segment->sequence * metadata->table_columns;
        const scalar_t *keys = cache->keys + g * cache->head_stride, *values = cache->values + g * cache->head_stride;
        for (int64_t r = begin; r < end; r += ATTENTION_MAX_ROWS) {
            int64_t rows = end - r < ATTENTION_MAX_ROWS ? end - r : ATTENTION_MAX_ROWS, first = segment->first_row + r;
            int64_t offset = (first * heads + g * group) * size;
            const int64_t *starts = metadata->kv_starts ? metadata->kv_starts + first : 0;
            QueryRows in = {q + offset, out + offset, metadata->kv_lens + first, starts, rows, group, heads * size, how};
            attend_rows(&in, segment, pages, keys, values, size, &scratch);
        }
    }
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) _tile_release();
#endif
}

/* out = softmax(q k scale) v; q, out [rows, heads, head_dim]. */
void attention(const scalar_t *q, scalar_t *out, int64_t heads, const KVCache *cache, const AttentionMetadata *metadata,
               int64_t threads) {
    int64_t bytes = attention_scratch_bytes(ATTENTION_MAX_ROWS * (heads / cache->kv_heads), cache->head_dim);
#pragma omp parallel num_threads(threads)
    {
        SCOPED_FLOAT_STATE caller = set_default_float_state();
        char *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
        attention_share(q, out, heads, cache, metadata, memory, this_thread());
        free(memory);
    }
}
#else
int has_attention(void) { return 0; }
#endif

#endif
