/* Activations in int8: integer sums of a row are exact, so their order cannot matter. */
#ifndef ORTHRUS_QUANTIZE_H
#define ORTHRUS_QUANTIZE_H

#include <stdint.h>

#include "group_quantized.h"
#include "simd.h"

/* 32 inputs of a row whose codes share a scale: it times the sum of the codes, and the negated sums of all codes and of the
 * first sixteen, from which products with weights whose zero is another code begin. */
typedef struct {
    float scale, scaled_sum;
    int32_t minus_sum, minus_first_sum;
} RowGroup;
_Static_assert(sizeof(RowGroup) == 16, "linears.py allocates four words");

/* codes [rows, depth]. For INT8 weights they are unsigned around INT8_SHIFT, with scales [rows]. For codes in groups they are
 * signed, with groups [rows, depth / 32]. */
typedef struct {
    uint8_t *codes;
    float *scales;
    RowGroup *groups;
} QuantizedRows;

static inline QuantizedRows rows_from(QuantizedRows x, int64_t row, int64_t depth) {
    return (QuantizedRows){x.codes + row * depth, x.scales + row, x.groups};
}

static inline QuantizedRows grouped_rows_from(QuantizedRows x, int64_t row, int64_t depth) {
    return (QuantizedRows){x.codes + row * depth, x.scales, x.groups + row * (depth / GROUP)};
}

#ifdef HAVE_I8MM
/* Eight codes of the rows r and r + 1, from input `k` on, for matrix instructions. The last row of an odd number stands for
 * both. */
ALWAYS_INLINE i32x16 codes_of_pair(const int rows, const int r, QuantizedRows x, int64_t k, int64_t depth) {
    const uint8_t *first = x.codes + r * depth + k;
    return mmla_rows(first, r + 1 < rows ? first + depth : first);
}
#endif

/* By what values of at most `max` are multiplied to become codes. */
static inline f32x16 inverse_scale(float max) { return f32_set1(max > 0 ? 127.0f / max : 0.0f); }

/* One row to unsigned codes around INT8_SHIFT; returns its scale. `depth` is a multiple of LANES. */
static float quantize_row_int8(const scalar_t *x, uint8_t *codes, int64_t depth) {
    f32x16 tops = f32_zero();
    for (int64_t i = 0; i < depth; i += LANES) tops = f32_max(tops, f32_abs(load_lanes(x + i)));
    float max = f32_reduce_max(tops);
    f32x16 inverse = inverse_scale(max);
    for (int64_t i = 0; i < depth; i += LANES) {
        i32x16 rounded = f32_to_i32(f32_mul(load_lanes(x + i), inverse));
        i32_store_bytes(codes + i, i32_add(rounded, i32_set1(INT8_SHIFT)));
    }
    return max / 127.0f;
}

/* One group of 32 values to signed codes. */
static inline RowGroup quantize_group(const scalar_t *x, uint8_t *codes) {
    f32x16 values[2] = {load_lanes(x), load_lanes(x + LANES)};
    float max = f32_reduce_max(f32_max(f32_max(f32_zero(), f32_abs(values[0])), f32_abs(values[1])));
    f32x16 inverse = inverse_scale(max);
    float sums[2];
    for (int half = 0; half < 2; half++) {
        i32x16 rounded = f32_to_i32(f32_mul(values[half], inverse));
        i32_store_bytes(codes + half * LANES, rounded);
        sums[half] = f32_reduce_add(i32_to_f32(rounded));
    }
    float scale = max / 127.0f, sum = sums[0] + sums[1];
    return (RowGroup){scale, scale * sum, -(int32_t)sum, -(int32_t)sums[0]};
}

static void quantize_rows_int8(const scalar_t *x, QuantizedRows to, int64_t rows, int64_t depth) {
    for (int64_t r = 0; r < rows; r++) to.scales[r] = quantize_row_int8(x + r * depth, to.codes + r * depth, depth);
}

static void quantize_rows_groups(const scalar_t *x, QuantizedRows to, int64_t rows, int64_t depth) {
    for (int64_t g = 0; g < rows * (depth / GROUP); g++)
        to.groups[g] = quantize_group(x + g * GROUP, to.codes + g * GROUP);
}

#endif
