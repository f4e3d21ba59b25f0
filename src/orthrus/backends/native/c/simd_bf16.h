/* bf16 arithmetic for processors that have none: exact products in fp32, of which the even one of a pair is added first, and
 * rounding. */
#ifndef ORTHRUS_SIMD_BF16_H
#define ORTHRUS_SIMD_BF16_H

static inline f32x16 bf16_even(i32x16 pairs) { return i32_as_f32(i32_shift_left(pairs, 16)); }
static inline f32x16 bf16_odd(i32x16 pairs) { return i32_as_f32(i32_and(pairs, i32_set1((int32_t)0xffff0000))); }

#ifndef HAVE_BF16_DOT
static inline f32x16 dot_bf16(f32x16 sums, i32x16 a, i32x16 b) {
    return f32_fma(bf16_odd(a), bf16_odd(b), f32_fma(bf16_even(a), bf16_even(b), sums));
}
#endif

/* The bits of fp32, rounded to nearest even in the upper sixteen. */
static inline i32x16 round_to_bf16(f32x16 x) {
    i32x16 bits = f32_as_i32(x), odd = i32_and(i32_shift_right(bits, 16), i32_set1(1));
    return i32_add(bits, i32_add(odd, i32_set1(0x7fff)));
}

static inline f32x16 rounded_to_bf16(f32x16 x) { return bf16_odd(round_to_bf16(x)); }

static inline void store_bf16(uint16_t *y, f32x16 x) { i32_store_i16(y, i32_shift_right(round_to_bf16(x), 16)); }

/* The nearest bf16, in fp32, of values whose exponents are not at the ends of the range. The product with 2^16 - 1 is rounded
 * to the precision of bf16 times 2^16, so what it is short of the exact product with 2^16 is the value itself, rounded. */
static inline f32x16 nearest_bf16(f32x16 x) {
    return f32_fma(x, f32_set1(65536), f32_mul(x, f32_set1(-65535)));
}

/* Pairs of such values, exactly. */
static inline i32x16 bf16_pairs(f32x16 even, f32x16 odd) {
    return i32_or(i32_shift_right(f32_as_i32(even), 16), f32_as_i32(odd));
}

/* Even and odd numbers rounded to bf16, in words. */
static inline i32x16 bf16_of_halves(f32x16 even, f32x16 odd) { return bf16_pairs(nearest_bf16(even), nearest_bf16(odd)); }

#endif
