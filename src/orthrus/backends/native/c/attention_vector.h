/* The products and the softmax of attention over one chunk of keys, on vectors. */
#ifndef ORTHRUS_ATTENTION_VECTOR_H
#define ORTHRUS_ATTENTION_VECTOR_H

#include <stdint.h>

#include "attention_scratch.h"
#include "pack.h"
#include "simd.h"

/* Features of a slice of values; the most sums of scores, and rows of weighted sums, that fit in registers, and how many
 * vectors of features those of more than one row then have. */
enum { FEATURE_SLICE = 64 };
#if SIMD_REGISTERS == 32
enum { MAX_SCORE_SUMS = 8, MAX_SUM_ROWS = 6, SUM_VECTORS = 4 };
#else
enum { MAX_SCORE_SUMS = 6, MAX_SUM_ROWS = 3, SUM_VECTORS = 2 };
#endif

/* scores[r][0..15] = q_r k_j for `rows` rows and `panels` panels of 16 transposed keys. */
ALWAYS_INLINE void qk_scores(const scalar_t *const *q, const int32_t *keys, int64_t words, float *scores, const int rows,
                             const int panels) {
    f32x16 sums[MAX_SCORE_SUMS];
#pragma GCC unroll 16
    for (int n = 0; n < rows * panels; n++) sums[n] = f32_zero();
    for (int64_t i = 0; i < words; i++)
#pragma GCC unroll 16
        for (int n = 0; n < rows * panels; n++) {
            i32x16 key = i32_load(keys + 16 * (n / rows * words + i));
            i32x16 value = i32_set1(((const int32_t *)q[n % rows])[i]);
#ifdef BFLOAT16
            sums[n] = dot_bf16(sums[n], value, key);
#else
            sums[n] = f32_fma(i32_as_f32(value), i32_as_f32(key), sums[n]);
#endif
        }
#pragma GCC unroll 16
    for (int n = 0; n < rows * panels; n++)
        f32_store(scores + n % rows * KEY_CHUNK + 16 * (n / rows), sums[n]);
}

/* cap tanh(x / cap), where there is a cap. */
static inline f32x16 soft_cap_lanes(f32x16 x, float cap) {
    if (cap == 0.0f) return x;
    f32x16 one = f32_set1(1.0f), e = fast_exp_lanes(f32_mul(x, f32_set1(2.0f / cap)));
    f32x16 tanh = f32_sub(one, f32_div(f32_set1(2.0f), f32_add(e, one)));
    return f32_mul(tanh, f32_set1(cap));
}

/* The scores of a layer: see `AttentionMetadata`. */
typedef struct {
    float scale, soft_cap;
} Scores;

/* Scores of the keys from `hidden` to `visible` become exp(score - max), with `max` the largest so far; those of all others
 * up to `padded` become zeros. Returns the sum. */
static inline float softmax_weights(float *weights, int64_t hidden, int64_t visible, int64_t padded, Scores how, float *max) {
    f32x16 tops = f32_set1(*max), sums = f32_zero();
    for (int64_t i = 0; i < visible; i += LANES) {
        f32x16 scaled = f32_mul(f32_load(weights + i), f32_set1(how.scale));
        scaled = soft_cap_lanes(scaled, how.soft_cap);
        f32_store(weights + i, scaled);
        tops = f32_mask_max(lanes_between(hidden, visible, i), tops, scaled);
    }
    *max = f32_reduce_max(tops);
    tops = f32_set1(*max);
    for (int64_t i = 0; i < padded; i += LANES) {
        f32x16 weight = fast_exp_lanes(f32_sub(f32_load(weights + i), tops));
        weight = f32_keep(lanes_between(hidden, visible, i), weight);
        f32_store(weights + i, weight);
        sums = f32_add(sums, weight);
    }
    return f32_reduce_add(sums);
}

/* sums[r] = sums[r] * rescale[r] + weights[r] v over `count` keys, for `lanes` x 16 features; in bf16, by pairs of keys and of
 * weights narrowed to bf16. */
ALWAYS_INLINE void weighted_sum(const float *weights, const float *rescale, const scalar_t *v, int64_t count, int64_t size,
                                float *sums, const int rows, const int lanes) {
    f32x16 total[MAX_SUM_ROWS][FEATURE_SLICE / LANES];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++)
            total[r][p] = f32_mul(f32_load(sums + r * size + p * LANES), f32_set1(rescale[r]));
#ifdef BFLOAT16
    for (int64_t j = 0; j < count; j += 2, v += 2 * size) {
        i32x16 pairs[2 + FEATURE_SLICE / LANES];
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p += 2) interleave_pairs(v + p * LANES, count - j, size, lanes > 1 ? ~0u : 0xffffu, pairs + p);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            i32x16 weight = f32_as_i32(f32_broadcast(weights + r * KEY_CHUNK + j / 2));
#pragma GCC unroll 16
            for (int p = 0; p < lanes; p++) total[r][p] = dot_bf16(total[r][p], weight, pairs[p]);
        }
    }
#else
    for (int64_t j = 0; j < count; j++, v += size)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++) {
            f32x16 value = f32_load(v + p * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                total[r][p] = f32_fma(f32_broadcast(weights + r * KEY_CHUNK + j), value, total[r][p]);
        }
#endif
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++) f32_store(sums + r * size + p * LANES, total[r][p]);
}

/* Transposes a chunk of `count` keys of `words` words by panels of 16: [panels][words][16 keys]. */
static inline void pack_keys(const scalar_t *k, int64_t count, int64_t words, int32_t *packed) {
    const int32_t *keys = (const int32_t *)k;
    for (int64_t c = 0; c < count; c += 16)
        for (int64_t i = 0; i < words; i += 16)
            transpose_16x16(keys + c * words + i, words, count - c, words - i, packed + c * words + 16 * i);
}

#endif
