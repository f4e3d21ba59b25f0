/* The products and the softmax of attention over one chunk of keys, on vectors. */
#ifndef ORTHRUS_ATTENTION_VECTOR_H
#define ORTHRUS_ATTENTION_VECTOR_H

#include <stdint.h>
#include <string.h>

#include "attention_scratch.h"
#include "pack.h"
#include "simd.h"

/* Features of a slice of values; the most sums of scores, and rows of weighted sums, that fit in registers, and how many
 * vectors of features those of so many rows, and those of three, then have. */
enum { FEATURE_SLICE = 64 };
#if SIMD_REGISTERS == 32
enum { MAX_SCORE_SUMS = 8, MAX_SUM_ROWS = 6, SUM_VECTORS = 4, SUM_VECTORS_OF_3 = 4 };
#elif defined(ATTENTION_IN_PAIRS)
enum { MAX_SCORE_SUMS = 6, MAX_SUM_ROWS = 3, SUM_VECTORS = 2, SUM_VECTORS_OF_3 = 2 };
#else
enum { MAX_SCORE_SUMS = 6, MAX_SUM_ROWS = 6, SUM_VECTORS = 1, SUM_VECTORS_OF_3 = 1 };
#endif

#ifndef ATTENTION_IN_PAIRS
enum { WORD_VALUES = 4 / sizeof(scalar_t) };

/* The first or second value of each of 16 words of keys. */
ALWAYS_INLINE f32x16 key_values(i32x16 words, const int place) {
#ifdef BFLOAT16
    return bf16_even(place ? i32_shift_right(words, 16) : words); /* a mask would take a register */
#else
    (void)place;
    return i32_as_f32(words);
#endif
}
#endif

static inline void copy_query(const scalar_t *q, int64_t size, query_t *to) {
#ifdef ATTENTION_IN_PAIRS
    memcpy(to, q, size * sizeof(scalar_t));
#else
    for (int64_t i = 0; i < size; i += LANES) f32_store(to + i, load_lanes(q + i));
#endif
}

/* scores[r][0..15] = q_r k_j for `rows` rows and `panels` panels of 16 transposed keys. */
ALWAYS_INLINE void qk_scores(const query_t *q, const int32_t *keys, int64_t words, float *scores, const int rows,
                             const int panels) {
    f32x16 sums[MAX_SCORE_SUMS];
#pragma GCC unroll 16
    for (int n = 0; n < rows * panels; n++) sums[n] = f32_zero();
    for (int64_t i = 0; i < words; i++)
#ifdef ATTENTION_IN_PAIRS
#pragma GCC unroll 16
        for (int n = 0; n < rows * panels; n++) {
            i32x16 key = i32_load(keys + 16 * (n / rows * words + i));
            sums[n] = dot_bf16(sums[n], i32_broadcast((const int32_t *)q + n % rows * words + i), key);
        }
#else
#pragma GCC unroll 4
        for (int n = 0; n < panels * WORD_VALUES; n++) {
            int panel = n / WORD_VALUES, place = n % WORD_VALUES;
            if (SIMD_REGISTERS < 32) __asm__ volatile("" ::: "memory"); /* or gcc loads all first, and spills sums */
            f32x16 key = f32_in_registers(key_values(i32_load(keys + 16 * (panel * words + i)), place));
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                f32x16 *sum = &sums[panel * rows + r];
                *sum = f32_fma(f32_broadcast(q + WORD_VALUES * (r * words + i) + place), key, *sum);
            }
        }
#endif
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

/* The weights of 16 keys from the i-th on, as weighted sums read them. */
static inline void store_weights(float *weights, int64_t i, f32x16 x) {
#ifdef ATTENTION_IN_PAIRS
    store_bf16((scalar_t *)weights + i, x);
#elif defined(BFLOAT16)
    f32_store(weights + i, rounded_to_bf16(x));
#else
    f32_store(weights + i, x);
#endif
}

/* Scores of the keys from `hidden` to `visible` become exp(score - max), with `max` the largest so far; those of all others
 * up to `padded` become zeros. Returns the sum. */
static inline float softmax_weights(float *weights, int64_t hidden, int64_t visible, int64_t padded, Scores how, float *max) {
    f32x16 tops = f32_set1(*max), sums = f32_zero();
    for (int64_t i = 0; i < visible; i += LANES) {
        f32x16 scaled = f32_mul(f32_load(weights + i), f32_set1(how.scale));
        scaled = soft_cap_lanes(scaled, how.soft_cap);
        f32_store(weights + i, scaled);
        if (i >= hidden && i + LANES <= visible) tops = f32_max(tops, scaled);
        else tops = f32_mask_max(lanes_between(hidden, visible, i), tops, scaled);
    }
    *max = f32_reduce_max(tops);
    tops = f32_set1(*max);
    for (int64_t i = 0; i < padded; i += LANES) {
        f32x16 weight = fast_exp_lanes(f32_sub(f32_load(weights + i), tops));
        if (i < hidden || i + LANES > visible) weight = f32_keep(lanes_between(hidden, visible, i), weight);
        store_weights(weights, i, weight);
        sums = f32_add(sums, weight);
    }
    return f32_reduce_add(sums);
}

/* sums[r] = sums[r] * rescale[r] + weights[r] v over `count` keys, for `lanes` x 16 features. Weights are those of
 * softmax_chunk. */
ALWAYS_INLINE void weighted_sum(const float *weights, const float *rescale, const scalar_t *v, int64_t count, int64_t size,
                                float *sums, const int rows, const int lanes) {
    f32x16 total[MAX_SUM_ROWS][FEATURE_SLICE / LANES];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++)
            total[r][p] = f32_mul(f32_load(sums + r * size + p * LANES), f32_set1(rescale[r]));
#ifdef ATTENTION_IN_PAIRS
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
            f32x16 value = f32_in_registers(load_lanes(v + p * LANES));
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
