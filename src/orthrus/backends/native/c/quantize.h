/* Activations in int8, with a scale per row: integer sums of a row are exact, so their order cannot matter. */
#ifndef ORTHRUS_QUANTIZE_H
#define ORTHRUS_QUANTIZE_H

#include <stdint.h>

#include "group_quantized.h"
#include "simd.h"

/* codes [rows, depth], unsigned around INT8_SHIFT for INT8 weights and signed for W4A8; scales [rows]; for W4A8 the sum of
 * each group of codes, sums [rows, depth / 32]. */
typedef struct {
    uint8_t *codes;
    float *scales, *sums;
} QuantizedRows;

enum { INT8_SHIFT = 128 };

static inline QuantizedRows rows_from(QuantizedRows x, int64_t row, int64_t depth) {
    return (QuantizedRows){x.codes + row * depth, x.scales + row, x.sums ? x.sums + row * depth / GROUP : 0};
}

#ifdef HAVE_VNNI
/* One row to unsigned codes around INT8_SHIFT; returns its scale. `depth` is a multiple of LANES. */
static float quantize_row_int8(const scalar_t *x, uint8_t *codes, int64_t depth) {
    __m512 tops = _mm512_setzero_ps();
    for (int64_t i = 0; i < depth; i += LANES) tops = _mm512_max_ps(tops, _mm512_abs_ps(load_lanes(x + i)));
    float max = _mm512_reduce_max_ps(tops);
    __m512 inverse = _mm512_set1_ps(max > 0 ? 127.0f / max : 0.0f);
    for (int64_t i = 0; i < depth; i += LANES) {
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(load_lanes(x + i), inverse));
        __m512i shifted = _mm512_add_epi32(rounded, _mm512_set1_epi32(INT8_SHIFT));
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(shifted));
    }
    return max / 127.0f;
}

/* One row to signed codes, and the sum of each group of them; returns its scale. */
static float quantize_row_groups(const scalar_t *x, uint8_t *codes, float *sums, int64_t depth) {
    float scale = quantize_row_int8(x, codes, depth);
    const __m256i ones = _mm256_set1_epi8(1), shift = _mm256_set1_epi8((char)INT8_SHIFT);
    for (int64_t i = 0; i < depth; i += GROUP) {
        __m256i *at = (__m256i *)(codes + i), signed_codes = _mm256_xor_si256(_mm256_loadu_si256(at), shift);
        _mm256_storeu_si256(at, signed_codes);
        __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, signed_codes);
        sums[i / GROUP] = (float)_mm512_reduce_add_epi32(_mm512_zextsi256_si512(fours));
    }
    return scale;
}

static void quantize_rows_int8(const scalar_t *x, QuantizedRows to, int64_t rows, int64_t depth) {
    for (int64_t r = 0; r < rows; r++) to.scales[r] = quantize_row_int8(x + r * depth, to.codes + r * depth, depth);
}

static void quantize_rows_groups(const scalar_t *x, QuantizedRows to, int64_t rows, int64_t depth) {
    for (int64_t r = 0; r < rows; r++)
        to.scales[r] = quantize_row_groups(x + r * depth, to.codes + r * depth, to.sums + r * depth / GROUP, depth);
}
#endif

#endif
