/* Group-quantised weights expanded to bf16 values in fp32, as vectors of even and of odd inputs. */
#ifndef ORTHRUS_DEQUANTIZE_PAIRS_H
#define ORTHRUS_DEQUANTIZE_PAIRS_H

#include <stdint.h>

#include "gemm_bf16.h"
#include "group_quantized.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "simd.h"

/* Eight inputs of four outputs, 4 apart. */
typedef struct {
    f32x16 even, odd;
} WeightPairs;

/* Scales, or minima, of the outputs q, q + 4, q + 8, q + 12, for eight inputs of each. */
static inline f32x16 quad_of(const float *by, int q) { return f32_spread(f32_load(by), q); }

/* At four bits the words of a vector of codes hold the inputs i, i + 8, i + 16, i + 24. */
ALWAYS_INLINE WeightPairs q4_pairs(i32x16 packed, f32x16 scale, f32x16 min, const int c) {
    const i32x16 code_mask = i32_set1(15);
    f32x16 even = i32_to_f32(i32_and(c ? i32_shift_right(packed, 4 * c) : packed, code_mask));
    i32x16 upper = i32_shift_right(packed, 16 + 4 * c);
    f32x16 odd = i32_to_f32(c < 3 ? i32_and(upper, code_mask) : upper);
    return (WeightPairs){nearest_bf16(f32_fma(even, scale, min)), nearest_bf16(f32_fma(odd, scale, min))};
}

ALWAYS_INLINE WeightPairs q8_pairs(const char *stored, f32x16 scale) {
    i32x16 codes = i32_load_i16(stored);
    f32x16 even = i32_to_f32(i32_shift_right_signed(i32_shift_left(codes, 24), 24));
    f32x16 odd = i32_to_f32(i32_shift_right_signed(codes, 8));
    return (WeightPairs){nearest_bf16(f32_mul(even, scale)), nearest_bf16(f32_mul(odd, scale))};
}

/* Half of the weights of five or six bits, of two outputs, in order of inputs. Codes are four low bits, as in Q4, and one or two
 * high ones, a word holding those of several c and q. The lower halves of words belong to the outputs q and q + 4, the upper
 * ones to q + 8 and q + 12. */
ALWAYS_INLINE f32x16 k_half(const int64_t format, i32x16 low, i32x16 high, const GroupScales *by, const int q, const int c,
                            const int half) {
    const int six_bits = format == FORMAT_Q6_K, place = six_bits ? 2 * (4 * (q & 1) + c) : 4 * q + c;
    const float *scales = six_bits && c >= 2 ? by->second_scale : by->scale;
    i32x16 four = i32_and(i32_shift_right(low, 16 * half + 4 * c), i32_set1(15));
    i32x16 above = i32_and(i32_shift_left(i32_shift_right(high, 16 * half + place), 4), i32_set1(six_bits ? 48 : 16));
    f32x16 value = i32_to_f32(i32_sub(i32_or(four, above), i32_set1(six_bits ? 32 : 0)));
    const int a = q + 8 * half, b = a + 4;
    f32x16 scale = f32_quarters(scales[a], scales[a], scales[b], scales[b]);
    if (six_bits) return f32_mul(value, scale);
    return f32_fma(value, scale, f32_quarters(by->min[a], by->min[a], by->min[b], by->min[b]));
}

/* The inputs 8 c to 8 c + 7 of a group, for the outputs q, q + 4, q + 8, q + 12. */
ALWAYS_INLINE WeightPairs dequantize_pairs(const int64_t format, const char *group, const GroupScales *by, const int q,
                                           const int c) {
    if (format == FORMAT_PLAIN) {
        i32x16 pairs = i32_load(group + 64 * (4 * c + q));
        return (WeightPairs){bf16_even(pairs), bf16_odd(pairs)};
    }
    if (format == FORMAT_Q5_K || format == FORMAT_Q6_K || has_five_bits(format)) {
        i32x16 low = i32_load(group + 64 * q), high = i32_load(group + 256 + (format == FORMAT_Q6_K ? 64 * (q / 2) : 0));
        uint16_t both[2 * LANES];
        store_bf16(both, k_half(format, low, high, by, q, c, 0));
        store_bf16(both + LANES, k_half(format, low, high, by, q, c, 1));
        i32x16 pairs = i32_load(both);
        return (WeightPairs){bf16_even(pairs), bf16_odd(pairs)};
    }
    f32x16 scale = quad_of(by->scale, q);
    if (format == FORMAT_Q8) return q8_pairs(group + 32 * (4 * c + q), scale);
    return q4_pairs(i32_load(group + 64 * q), scale, quad_of(by->min, q), c);
}

/* All 32 inputs in bf16, eight in each vector. */
ALWAYS_INLINE void dequantize_quad(const int64_t format, const char *group, const GroupScales *by, const int q, i32x16 *w) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        WeightPairs pairs = dequantize_pairs(format, group, by, q, c);
        w[c] = bf16_pairs(pairs.even, pairs.odd);
    }
}

#endif
