/* The products and the softmax of attention over one chunk of keys, on vectors. */
#ifndef ORTHRUS_ATTENTION_VECTOR_H
#define ORTHRUS_ATTENTION_VECTOR_H

#include <stdint.h>

#include "attention_scratch.h"
#include "pack.h"
#include "simd.h"

#if defined(HAVE_AVX512) && (!defined(BFLOAT16) || defined(HAVE_BF16_DOT))
#define HAVE_ATTENTION
/* Features of a slice of values; the most sums of scores, and rows of weighted sums, that fit in registers. */
enum { FEATURE_SLICE = 64, MAX_SCORE_SUMS = 8, MAX_SUM_ROWS = 6 };

/* scores[r][0..15] = q_r k_j for `rows` rows and `panels` panels of 16 transposed keys. */
ALWAYS_INLINE void qk_scores(const scalar_t *const *q, const int32_t *keys, int64_t words, float *scores, const int rows,
                             const int panels) {
    __m512 sums[MAX_SCORE_SUMS];
#pragma GCC unroll 16
    for (int n = 0; n < rows * panels; n++) sums[n] = _mm512_setzero_ps();
    for (int64_t i = 0; i < words; i++)
#pragma GCC unroll 16
        for (int n = 0; n < rows * panels; n++) {
            __m512i key = _mm512_loadu_si512(keys + 16 * (n / rows * words + i));
            __m512i value = _mm512_set1_epi32(((const int32_t *)q[n % rows])[i]);
#ifdef BFLOAT16
            sums[n] = _mm512_dpbf16_ps(sums[n], (__m512bh)value, (__m512bh)key);
#else
            sums[n] = _mm512_fmadd_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(key), sums[n]);
#endif
        }
#pragma GCC unroll 16
    for (int n = 0; n < rows * panels; n++)
        _mm512_storeu_ps(scores + n % rows * KEY_CHUNK + 16 * (n / rows), sums[n]);
}

/* The lanes i to i + 15 that lie below `count`. */
static inline __mmask16 lanes_below(int64_t count, int64_t i) {
    return (__mmask16)(count - i < LANES ? (count > i ? (1 << (count - i)) - 1 : 0) : 0xffff);
}

/* cap tanh(x / cap), where there is a cap. */
static inline __m512 soft_cap_lanes(__m512 x, float cap) {
    if (cap == 0.0f) return x;
    __m512 one = _mm512_set1_ps(1.0f), e = fast_exp_lanes(_mm512_mul_ps(x, _mm512_set1_ps(2.0f / cap)));
    __m512 tanh = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    return _mm512_mul_ps(tanh, _mm512_set1_ps(cap));
}

/* The scores of a layer: see `AttentionMetadata`. */
typedef struct {
    float scale, soft_cap;
} Scores;

/* Scores of the keys from `hidden` to `visible` become exp(score - max), with `max` the largest so far; those of all others
 * up to `padded` become zeros. Returns the sum. */
static inline float softmax_weights(float *weights, int64_t hidden, int64_t visible, int64_t padded, Scores how, float *max) {
    __m512 tops = _mm512_set1_ps(*max), sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < visible; i += LANES) {
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(weights + i), _mm512_set1_ps(how.scale));
        scaled = soft_cap_lanes(scaled, how.soft_cap);
        _mm512_storeu_ps(weights + i, scaled);
        tops = _mm512_mask_max_ps(tops, lanes_below(visible, i) & ~lanes_below(hidden, i), tops, scaled);
    }
    *max = _mm512_reduce_max_ps(tops);
    tops = _mm512_set1_ps(*max);
    for (int64_t i = 0; i < padded; i += LANES) {
        __m512 weight = fast_exp_lanes(_mm512_sub_ps(_mm512_loadu_ps(weights + i), tops));
        weight = _mm512_maskz_mov_ps(lanes_below(visible, i) & ~lanes_below(hidden, i), weight);
        _mm512_storeu_ps(weights + i, weight);
        sums = _mm512_add_ps(sums, weight);
    }
    return _mm512_reduce_add_ps(sums);
}

/* sums[r] = sums[r] * rescale[r] + weights[r] v over `count` keys, for `lanes` x 16 features; in bf16, by pairs of keys and of
 * weights narrowed to bf16. */
ALWAYS_INLINE void weighted_sum(const float *weights, const float *rescale, const scalar_t *v, int64_t count, int64_t size,
                                float *sums, const int rows, const int lanes) {
    __m512 total[MAX_SUM_ROWS][FEATURE_SLICE / LANES];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++)
            total[r][p] = _mm512_mul_ps(_mm512_loadu_ps(sums + r * size + p * LANES), _mm512_set1_ps(rescale[r]));
#ifdef BFLOAT16
    for (int64_t j = 0; j < count; j += 2, v += 2 * size) {
        __m512i pairs[2 + FEATURE_SLICE / LANES];
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p += 2) interleave_pairs(v + p * LANES, count - j, size, lanes > 1 ? ~0u : 0xffffu, pairs + p);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512bh weight = (__m512bh)broadcast(weights + r * KEY_CHUNK + j / 2);
#pragma GCC unroll 16
            for (int p = 0; p < lanes; p++) total[r][p] = _mm512_dpbf16_ps(total[r][p], weight, (__m512bh)pairs[p]);
        }
    }
#else
    for (int64_t j = 0; j < count; j++, v += size)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++) {
            __m512 value = _mm512_loadu_ps(v + p * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                total[r][p] = _mm512_fmadd_ps(broadcast(weights + r * KEY_CHUNK + j), value, total[r][p]);
        }
#endif
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < lanes; p++) _mm512_storeu_ps(sums + r * size + p * LANES, total[r][p]);
}

/* Transposes a chunk of `count` keys of `words` words by panels of 16: [panels][words][16 keys]. */
static inline void pack_keys(const scalar_t *k, int64_t count, int64_t words, int32_t *packed) {
    const int32_t *keys = (const int32_t *)k;
    for (int64_t c = 0; c < count; c += 16)
        for (int64_t i = 0; i < words; i += 16)
            transpose_16x16(keys + c * words + i, words, count - c, words - i, packed + c * words + 16 * i);
}
#endif

#endif
