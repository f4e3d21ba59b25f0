/* The codes of group-quantised weights as vectors of bytes, for products with int8 activations.
 *
 * The codes of 32 inputs of 16 outputs are eight vectors of 64 bytes. Vector j holds the inputs 4 j to 4 j + 3 of output n / 4
 * in the bytes n; for matrix instructions (HAVE_I8MM) the vectors 2 t and 2 t + 1 hold the inputs 8 t to 8 t + 7 of the
 * outputs n / 8 and n / 8 + 8. A byte has four bits of byte n of the vectors 2 t and 2 t + 1, then come bytes of the fifth bits
 * of byte n of all vectors, or of the two upper bits of four of them. At eight bits, a byte holds a code around INT8_SHIFT. */
#ifndef ORTHRUS_GROUP_CODES_H
#define ORTHRUS_GROUP_CODES_H

#include <stdint.h>

#include "linear_weights.h"
#include "packed_groups.h"
#include "quantize.h"
#include "simd.h"

typedef struct {
    i32x16 first, second;
} CodePair;

/* Bits of every byte, moved up by `places` where that is positive, else down. */
ALWAYS_INLINE i32x16 moved_bits(i32x16 bytes, const int places, const int bits) {
    i32x16 moved = places > 0 ? i32_shift_left(bytes, places) : places < 0 ? i32_shift_right(bytes, -places) : bytes;
    return i32_and(moved, i32_set1(bits * 0x01010101));
}

/* The vectors 2 t and 2 t + 1 of a group, one code per byte. */
ALWAYS_INLINE CodePair unpack_codes(const int64_t format, const char *codes, const int t) {
    const int bits = code_bits(format);
    if (bits == 8) return (CodePair){i32_load(codes + 128 * t), i32_load(codes + 128 * t + 64)};
    i32x16 packed = i32_load(codes + 64 * t), first = low_nibbles(packed), second = high_nibbles(packed);
    if (bits == 5) {
        i32x16 fifth = i32_load(codes + 256);
        first = i32_or(first, moved_bits(fifth, 4 - 2 * t, 16));
        second = i32_or(second, moved_bits(fifth, 3 - 2 * t, 16));
    } else if (bits == 6) {
        i32x16 upper = i32_load(codes + 256 + 64 * (t / 2));
        first = i32_or(first, moved_bits(upper, t % 2 ? 0 : 4, 48));
        second = i32_or(second, moved_bits(upper, t % 2 ? -2 : 2, 48));
    }
    return (CodePair){first, second};
}

/* The code that stands for zero: those of eight bits lie around INT8_SHIFT here. */
static inline int zero_of_codes(int64_t format) { return format == FORMAT_Q8 ? INT8_SHIFT : zero_code(format); }

/* What the products of a row with a group, or with half of one in Q6_K, begin with: all codes of the row times the code that
 * stands for zero, subtracted. */
ALWAYS_INLINE i32x16 products_of_zero(const int64_t format, const RowGroup *row, const int half) {
    const int zero = zero_of_codes(format);
    if (!zero) return i32_zero();
    i32x16 minus = i32_broadcast(format == FORMAT_Q6_K && !half ? &row->minus_first_sum : &row->minus_sum);
    if (format == FORMAT_Q6_K && half) minus = i32_sub(minus, i32_broadcast(&row->minus_first_sum));
    return i32_shift_left(minus, zero == 16 ? 4 : zero == 32 ? 5 : 7);
}

/* Adds the products of a row with a group, or with half of one, that began with `products_of_zero`. They are exact. */
ALWAYS_INLINE f32x16 add_products(const int64_t format, f32x16 total, i32x16 products, f32x16 scale, f32x16 min,
                                  const RowGroup *row) {
    total = f32_fma(i32_to_f32(products), f32_mul(scale, f32_broadcast(&row->scale)), total);
    return has_mins(format) ? f32_fma(f32_broadcast(&row->scaled_sum), min, total) : total;
}

#endif
