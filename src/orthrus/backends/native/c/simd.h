/* The scalar type of the library and vectors of sixteen fp32 lanes. */
#ifndef ORTHRUS_SIMD_H
#define ORTHRUS_SIMD_H

#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

/* f32x16, i32x16: sixteen lanes of fp32 or of integers, in as many registers as they take. Every level has the same
 * operations with the same bits, except for the instructions on bf16 and the reciprocal of AVX-512:
 *
 * f32_fma(a, b, c)        a b + c, f32_fnma(a, b, c) c - a b, rounded once
 * f32_max, f32_min        the second operand where one is NaN
 * f32_round, f32_scale    to the nearest integer, ties to even; a 2^whole
 * f32_reciprocal          1 / a, accurate to two units in the last place
 * f32_reduce_add, _max    over all lanes: those 8 apart first, then 4, 2 and 1
 * lanes_between           the lanes i to i + 15 from `first` to below `stop`; f32_keep(mask, a): others become 0;
 *                         f32_mask_max(mask, a, b): others stay a
 * i32_load_words          8 words if `count` < 16, then zeros, else 16
 * i32_broadcast           a word of memory in all lanes
 * f32_in_registers, i32_in_registers  the value itself, behind a compiler barrier: it is not loaded again for every use, and
 *                         a sum that passes through is not reassociated
 * i32_swap_halves         the two halves of every word in the other order
 * i32_repeat4             four words in every quarter
 * f32_reduce_quarters     of four vectors: lane 4 p + q is the sum of the lanes 4 p to 4 p + 3 of x[q], those 2 apart first
 * low_nibbles             the lower half of every byte, in bytes; high_nibbles: the upper one
 * dot_bf16                sums + the products of pairs of bf16 in every word
 * dot_i8                  sums + the products of four codes around INT8_SHIFT by four signed bytes in every word, exact;
 *                         the signed bytes are above -128
 * mmla_i8                 where HAVE_I8MM: sums of [2 rows][2 outputs] in every quarter, + the products of eight signed bytes
 *                         of two rows by eight of two outputs; mmla_rows: eight bytes of each of two rows in every quarter;
 *                         mmla_row: the sums of row 0 or 1 for sixteen outputs, of two vectors of sums
 * dot_u4, u4_sums         the same with values from 0 to 15 by signed codes: u4_sums of at most 8 calls
 * dot_u6                  the same with two vectors of values from 0 to 63 by two of signed codes
 * transpose_4x4           four rows of words; out[j stride + i] = rows[i][j]
 * interleave_i16          16 numbers of 16 bits of each of two arrays, in turn
 *
 * SIMD_REGISTERS is the number of such vectors that fit in registers. ORTHRUS_PLAIN_C chooses the level without
 * intrinsics. */
#if defined(ORTHRUS_PLAIN_C)
#include "simd_plain.h"
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"
#elif defined(__aarch64__)
#include "simd_neon.h"
#else
#include "simd_plain.h"
#endif
#if !defined(SIMD_AVX512) || !defined(HAVE_BF16_DOT)
#include "simd_bf16.h"
#endif

#ifdef BFLOAT16
typedef uint16_t scalar_t;

static inline float to_float(scalar_t stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline scalar_t from_float(float value) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (scalar_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float scalar_t;

static inline float to_float(scalar_t stored) { return stored; }

static inline scalar_t from_float(float value) { return value; }
#endif

/* exp by range reduction and a polynomial (Cephes), accurate to 2 units in the last place, and vectorisable. NaN gives NaN:
 * the power of two comes from the bits of a float, since NaN as an integer is not defined. */
static inline float fast_exp(float x) {
    x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    float shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    float scale;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + (127u << 23);
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* Weights are read from memory once and in order. The more arithmetic per weight, the less far the hardware prefetcher
 * looks ahead. */
enum { PREFETCH_BYTES = 4096 };

static inline void prefetch(const void *address) { __builtin_prefetch(address, 0, 3); }

/* Not to the first-level cache, which holds what is computed meanwhile. */
static inline void prefetch_to_second_level(const void *from, int64_t bytes) {
    for (int64_t l = 0; l < bytes; l += 64) __builtin_prefetch((const char *)from + l, 0, 2);
}

static inline void prefetch_ahead(const void *weights) { prefetch((const char *)weights + PREFETCH_BYTES); }

/* Sixteen scalars. */
static inline f32x16 load_lanes(const scalar_t *x) {
#ifdef BFLOAT16
    return load_bf16(x);
#else
    return f32_load(x);
#endif
}

static inline void store_lanes(scalar_t *y, f32x16 values) {
#ifdef BFLOAT16
    store_bf16(y, values);
#else
    f32_store(y, values);
#endif
}

/* exp of sixteen lanes, for x up to 80. */
static inline f32x16 fast_exp_lanes(f32x16 x) {
    x = f32_min(f32_max(x, f32_set1(-87.0f)), f32_set1(80.0f));
    f32x16 whole = f32_round(f32_mul(x, f32_set1(1.44269504f)));
    f32x16 r = f32_fnma(whole, f32_set1(0.693359375f), x);
    r = f32_fma(whole, f32_set1(2.12194440e-4f), r);
    f32x16 p = f32_set1(1.9875691500e-4f);
    p = f32_fma(p, r, f32_set1(1.3981999507e-3f));
    p = f32_fma(p, r, f32_set1(8.3334519073e-3f));
    p = f32_fma(p, r, f32_set1(4.1665795894e-2f));
    p = f32_fma(p, r, f32_set1(1.6666665459e-1f));
    p = f32_fma(p, r, f32_set1(5.0000001201e-1f));
    p = f32_fma(f32_mul(p, r), r, f32_add(r, f32_set1(1.0f)));
    return f32_scale(p, whole);
}

/* 2^x of sixteen lanes, for x up to 0: the error is that of rounding. Never denormal, which would take far longer. */
static inline f32x16 fast_exp2_lanes(f32x16 x) {
    x = f32_max(x, f32_set1(-125.0f));
    f32x16 whole = f32_round(x), r = f32_sub(x, whole), p = f32_set1(1.327647187e-3f);
    p = f32_fma(p, r, f32_set1(9.675541333e-3f));
    p = f32_fma(p, r, f32_set1(5.550713274e-2f));
    p = f32_fma(p, r, f32_set1(2.402211972e-1f));
    p = f32_fma(p, r, f32_set1(6.931469671e-1f));
    p = f32_fma(p, r, f32_set1(1.0f));
    return f32_scale(p, whole);
}

#endif
