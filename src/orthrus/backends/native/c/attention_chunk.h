/* One chunk of keys: scores, softmax and weighted sums, on tiles or on vectors.
 *
 * For keys that it does not attend to, a row computes nothing or, beside rows that do, adds zeros. */
#ifndef ORTHRUS_ATTENTION_CHUNK_H
#define ORTHRUS_ATTENTION_CHUNK_H

#include <math.h>
#include <stdint.h>

#include "attention_amx.h"
#include "attention_scratch.h"
#include "attention_vector.h"
#include "pack.h"
#include "simd.h"

/* The scores of a chunk on vectors, during which its values are prefetched. Few sums at a time would wait for one another. */
static void qk_scores_vector(const AttentionScratch *scratch, int64_t rows, int64_t panels, int64_t words,
                             const scalar_t *values) {
    for (int64_t r = 0, taken; r < rows; r += taken) {
        int64_t left = rows - r;
        taken = MAX_SCORE_SUMS == 8 && (left > 9 || left == 8) ? 8 : left >= 6 ? 6 : left == 5 ? 3 : left;
        int64_t step = taken * 2 <= MAX_SCORE_SUMS ? 2 : 1; /* there is room for a panel too many, which is not read */
        for (int64_t c = 0; c < panels; c += step) {
            const int32_t *keys = scratch->packed_keys + 16 * c * words;
            if (r == 0) prefetch_to_second_level((const char *)values + 64 * c * words, 64 * step * words);
            const query_t *q = scratch->queries + r * words * 4 / (int64_t)sizeof(scalar_t);
            float *scores = scratch->weights + r * KEY_CHUNK + 16 * c;
            switch (taken) {
#if SIMD_REGISTERS == 32
            case 8: qk_scores(q, keys, words, scores, 8, 1); break;
            case 4: qk_scores(q, keys, words, scores, 4, 2); break;
#else
            case 4: qk_scores(q, keys, words, scores, 4, 1); break;
#endif
            case 6: qk_scores(q, keys, words, scores, 6, 1); break;
            case 3: qk_scores(q, keys, words, scores, 3, 2); break;
            case 2: qk_scores(q, keys, words, scores, 2, 2); break;
            default: qk_scores(q, keys, words, scores, 1, 2);
            }
        }
    }
}

/* The weighted sums of a chunk on vectors, no further than each group of rows attends, and over at most `limit` keys. */
static void weighted_sum_vector(const AttentionScratch *scratch, int64_t rows, const scalar_t *v, int64_t limit, int64_t size) {
    for (int64_t s = 0; s < size; s += FEATURE_SLICE)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = rows - r >= MAX_SUM_ROWS ? MAX_SUM_ROWS : rows - r >= 3 ? 3 : 1;
            int64_t count = 0;
            for (int64_t i = r; i < r + taken; i++) count = scratch->visible[i] > count ? scratch->visible[i] : count;
            count = count < limit ? count : limit;
            const float *weights = scratch->weights + r * KEY_CHUNK, *rescale = scratch->rescale + r;
            float *sums = scratch->sums + r * size + s;
            if (size - s < FEATURE_SLICE) {
                for (int64_t p = 0; p < size - s; p += LANES)
                    for (int64_t i = 0; i < taken; i++)
                        weighted_sum(weights + i * KEY_CHUNK, rescale + i, v + s + p, count, size, sums + i * size + p, 1, 1);
            } else if (taken == 1) weighted_sum(weights, rescale, v + s, count, size, sums, 1, FEATURE_SLICE / LANES);
            else if (taken == 3)
                for (int64_t p = 0; p < FEATURE_SLICE; p += SUM_VECTORS_OF_3 * LANES)
                    weighted_sum(weights, rescale, v + s + p, count, size, sums + p, 3, SUM_VECTORS_OF_3);
            else
                for (int64_t p = 0; p < FEATURE_SLICE; p += SUM_VECTORS * LANES)
                    weighted_sum(weights, rescale, v + s + p, count, size, sums + p, MAX_SUM_ROWS, SUM_VECTORS);
        }
}

/* For how many keys a chunk of `count` keys has weights, those behind the last key being zero. */
static inline int64_t padded_keys(int64_t count, int64_t size) {
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) return (count + 31) / 32 * 32;
#endif
    (void)size;
    return (count + 15) / 16 * 16;
}

/* All scores of a chunk of `count` keys, whose values are used next. */
static void score_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *k, const scalar_t *v, int64_t count,
                        int64_t size) {
    int64_t words = size * (int64_t)sizeof(scalar_t) / 4, panels = (count + 15) / 16;
    pack_keys(k, count, words, scratch->packed_keys);
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) {
        qk_scores_amx(scratch, rows, panels, size);
        return;
    }
#endif
    qk_scores_vector(scratch, rows, panels, words, v);
}

/* The weights of a chunk from its scores, and by how much they rescale what was summed before. */
static void softmax_chunk(const AttentionScratch *scratch, int64_t rows, int64_t padded, Scores how) {
    for (int64_t r = 0; r < rows; r++) {
        float before = scratch->max[r], *weights = scratch->weights + r * KEY_CHUNK;
        int64_t hidden = scratch->hidden[r], visible = scratch->visible[r];
        float sum = softmax_weights(weights, hidden, visible, padded, how, scratch->max + r);
        scratch->rescale[r] = visible > hidden ? expf(before - scratch->max[r]) : 1.0f;
        scratch->denominator[r] = scratch->denominator[r] * scratch->rescale[r] + sum;
    }
}

/* All weighted sums of a chunk of `count` keys, of whose `padded` weights those that a row does not attend to are zero. */
static void sum_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *v, int64_t count, int64_t padded,
                      int64_t size) {
#ifdef HAVE_ATTENTION_AMX
    if (attention_on_tiles(size)) {
        scalar_t *pairs = value_pairs(scratch, size);
        pack_values(v, pairs, count, padded, size);
        weighted_sum_amx(scratch, pairs, rows, padded, size);
        return;
    }
#endif
    (void)padded;
    weighted_sum_vector(scratch, rows, v, count, size);
}

/* One chunk of `count` keys, of which query row r attends to those from hidden[r] to visible[r]. */
static void attend_chunk(const AttentionScratch *scratch, int64_t rows, const scalar_t *k, const scalar_t *v, int64_t count,
                         int64_t size, Scores how) {
    int64_t padded = padded_keys(count, size);
    score_chunk(scratch, rows, k, v, count, size);
    softmax_chunk(scratch, rows, padded, how);
    sum_chunk(scratch, rows, v, count, padded, size);
}

#endif
