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

static inline QuantizedRows rows_from(QuantizedRows x, int64_t row, int64_t depth) {
    return (QuantizedRows){x.codes + row * depth, x.scales + row, x.sums ? x.sums + row * depth / GROUP : 0};
}

#ifdef HAVE_I8MM
/* Eight codes of the rows r and r + 1, from input `k` on, for matrix instructions. The last row of an odd number stands for
 * both. */
ALWAYS_INLINE i32x16 codes_of_pair(const int rows, const int r, QuantizedRows x, int64_t k, int64_t depth) {
    const uint8_t *first = x.codes + r * depth + k;
    return mmla_rows(first, r + 1 < rows ? first + depth : first);
}
#endif

/* One row to unsigned codes around INT8_SHIFT; returns its scale. `depth` is a multiple of LANES. */
static float quantize_row_int8(const scalar_t *x, uint8_t *codes, int64_t depth) {
    f32x16 tops = f32_zero();
    for (int64_t i = 0; i < depth; i += LANES) tops = f32_max(tops, f32_abs(load_lanes(x + i)));
    float max = f32_reduce_max(tops);
    f32x16 inverse = f32_set1(max > 0 ? 127.0f / max : 0.0f);
    for (int64_t i = 0; i < depth; i += LANES) {
        i32x16 rounded = f32_to_i32(f32_mul(load_lanes(x + i), inverse));
        i32x16 shifted = i32_add(rounded, i32_set1(INT8_SHIFT));
        i32_store_bytes(codes + i, shifted);
    }
    return max / 127.0f;
}

/* One row to signed codes, and the sum of each group of them; returns its scale. */
static float quantize_row_groups(const scalar_t *x, uint8_t *codes, float *sums, int64_t depth) {
    float scale = quantize_row_int8(x, codes, depth);
    for (int64_t i = 0; i < depth; i += GROUP) sums[i / GROUP] = (float)make_signed(codes + i);
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
