/* simd.h on AVX-512: one register holds sixteen lanes. Without VNNI and AVX512-BF16 their products take more instructions. */
#ifndef ORTHRUS_SIMD_AVX512_H
#define ORTHRUS_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_AVX512
#define SIMD_REGISTERS 32

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __mmask16 mask16;

static inline f32x16 f32_zero(void) { return _mm512_setzero_ps(); }
static inline f32x16 f32_set1(float x) { return _mm512_set1_ps(x); }
static inline f32x16 f32_load(const float *x) { return _mm512_loadu_ps(x); }
static inline f32x16 f32_in_registers(f32x16 x) {
    __asm__("" : "+v"(x));
    return x;
}
static inline void f32_store(float *y, f32x16 a) { _mm512_storeu_ps(y, a); }
static inline f32x16 f32_add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
static inline f32x16 f32_sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
static inline f32x16 f32_mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
static inline f32x16 f32_div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
static inline f32x16 f32_max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
static inline f32x16 f32_min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
static inline f32x16 f32_abs(f32x16 a) { return _mm512_abs_ps(a); }
static inline f32x16 f32_fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline f32x16 f32_fnma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline f32x16 f32_round(f32x16 a) { return _mm512_roundscale_ps(a, 0); }
static inline f32x16 f32_scale(f32x16 a, f32x16 whole) { return _mm512_scalef_ps(a, whole); }
static inline float f32_reduce_add(f32x16 a) { return _mm512_reduce_add_ps(a); }
static inline float f32_reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a); }
static inline int f32_any_greater(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

static inline f32x16 f32_reciprocal(f32x16 a) { /* accurate to a unit or two after one Newton step */
    f32x16 r = _mm512_rcp14_ps(a);
    return f32_mul(r, f32_fnma(a, r, f32_set1(2.0f)));
}

/* One float in all lanes, by a load alone: the code for `_mm512_set1_ps` takes a shuffle as well on Zen 4. */
static inline f32x16 f32_broadcast(const float *x) {
    __m512i lanes;
    __asm__("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(*x));
    return _mm512_castsi512_ps(lanes);
}

static inline i32x16 i32_zero(void) { return _mm512_setzero_si512(); }
static inline i32x16 i32_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline i32x16 i32_broadcast(const void *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return i32_set1(word);
}
static inline i32x16 i32_in_registers(i32x16 x) {
    __asm__("" : "+v"(x));
    return x;
}
static inline i32x16 i32_load(const void *x) { return _mm512_loadu_si512(x); }
static inline void i32_store(void *y, i32x16 a) { _mm512_storeu_si512(y, a); }
static inline i32x16 i32_add(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
static inline i32x16 i32_sub(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a, b); }
static inline i32x16 i32_and(i32x16 a, i32x16 b) { return _mm512_and_si512(a, b); }
static inline i32x16 i32_or(i32x16 a, i32x16 b) { return _mm512_or_si512(a, b); }
static inline i32x16 i32_shift_left(i32x16 a, int bits) { return _mm512_slli_epi32(a, (unsigned)bits); }
static inline i32x16 i32_shift_right(i32x16 a, int bits) { return _mm512_srli_epi32(a, (unsigned)bits); }
static inline i32x16 i32_swap_halves(i32x16 a) { return _mm512_rol_epi32(a, 16); }
static inline f32x16 i32_to_f32(i32x16 a) { return _mm512_cvtepi32_ps(a); }
static inline i32x16 f32_to_i32(f32x16 a) { return _mm512_cvtps_epi32(a); }
static inline i32x16 f32_as_i32(f32x16 a) { return _mm512_castps_si512(a); }
static inline f32x16 i32_as_f32(i32x16 a) { return _mm512_castsi512_ps(a); }
static inline void i32_store_bytes(uint8_t *y, i32x16 a) { _mm_storeu_si128((__m128i *)y, _mm512_cvtepi32_epi8(a)); }

static inline i32x16 low_nibbles(i32x16 a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline i32x16 high_nibbles(i32x16 a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }

static inline f32x16 load_f16(const void *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }

static inline f32x16 load_i8(const void *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x)));
}

static inline f32x16 load_u8(const void *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x)));
}

static inline void i32_store_i16(void *y, i32x16 a) { _mm256_storeu_si256((__m256i *)y, _mm512_cvtepi32_epi16(a)); }

static inline f32x16 load_bf16(const uint16_t *x) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

static inline mask16 lanes_below(int64_t count, int64_t i) {
    return (__mmask16)(count - i < 16 ? (count > i ? (1 << (count - i)) - 1 : 0) : 0xffff);
}

static inline mask16 lanes_between(int64_t first, int64_t stop, int64_t i) {
    return lanes_below(stop, i) & ~lanes_below(first, i);
}

static inline f32x16 f32_mask_max(mask16 mask, f32x16 a, f32x16 b) { return _mm512_mask_max_ps(a, mask, a, b); }
static inline f32x16 f32_keep(mask16 mask, f32x16 a) { return _mm512_maskz_mov_ps(mask, a); }

static inline i32x16 i32_load_words(const void *x, int64_t count) {
    return _mm512_maskz_loadu_epi16(count < 16 ? 0xffff : 0xffffffff, x);
}

static inline i32x16 i32_repeat4(const void *x) {
    return _mm512_castps_si512(_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)x)));
}

static inline f32x16 f32_reduce_quarters(const f32x16 *x) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

#ifdef __AVX512BF16__
#define HAVE_BF16_DOT
/* Sixteen numbers of each rounded to bf16: lanes 2 i and 2 i + 1 of `low` are word i. */
static inline i32x16 bf16_of_halves(f32x16 low, f32x16 high) { return (i32x16)_mm512_cvtne2ps_pbh(high, low); }

/* Lane i + 8 `half` in the lanes 2 i and 2 i + 1. */
static inline f32x16 f32_double_lanes(f32x16 x, int half) {
    const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8 * half)), x);
}

static inline f32x16 dot_bf16(f32x16 sums, i32x16 a, i32x16 b) { return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b); }
static inline void store_bf16(uint16_t *y, f32x16 a) { _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(a)); }
#endif

#ifdef __AVX512VNNI__
enum { INT8_SHIFT = 128 };
static inline i32x16 dot_i8(i32x16 sums, i32x16 codes, i32x16 weights) { return _mm512_dpbusd_epi32(sums, codes, weights); }
static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) { return _mm512_dpbusd_epi32(part, nibbles, codes); }
static inline i32x16 u4_sums(i32x16 part) { return part; }

static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, a, x), b, y);
}
#else
enum { INT8_SHIFT = 0 };

/* Products of unsigned by signed bytes are summed in pairs that fit in sixteen bits: |x| times w with the sign of x. */
static inline i32x16 dot_i8(i32x16 sums, i32x16 codes, i32x16 weights) {
    __m512i with_sign = _mm512_mask_sub_epi8(weights, _mm512_movepi8_mask(codes), i32_zero(), weights);
    __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(codes), with_sign);
    return i32_add(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) {
    return _mm512_add_epi16(part, _mm512_maddubs_epi16(nibbles, codes));
}

static inline i32x16 u4_sums(i32x16 part) { return _mm512_madd_epi16(part, _mm512_set1_epi16(1)); }

static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) { /* four products fit in sixteen bits */
    __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(a, x), _mm512_maddubs_epi16(b, y));
    return i32_add(sums, u4_sums(pairs));
}
#endif

#endif
