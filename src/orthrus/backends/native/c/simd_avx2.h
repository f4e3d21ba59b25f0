/* simd.h on AVX2 with FMA and F16C: two registers hold sixteen lanes. */
#ifndef ORTHRUS_SIMD_AVX2_H
#define ORTHRUS_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_REGISTERS 8

typedef struct {
    __m256 a, b;
} f32x16;
typedef struct {
    __m256i a, b;
} i32x16;
typedef i32x16 mask16;

/* An operation on both halves. */
#define EACH(own, x) {own((x).a), own((x).b)}
#define EACH_PAIR(own, x, y) {own((x).a, (y).a), own((x).b, (y).b)}

static inline f32x16 f32_zero(void) { return (f32x16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline f32x16 f32_set1(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 f32_broadcast(const float *x) {
    return (f32x16){_mm256_broadcast_ss(x), _mm256_broadcast_ss(x)};
}
static inline f32x16 f32_load(const float *x) { return (f32x16){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }

static inline f32x16 f32_in_registers(f32x16 x) {
    __asm__("" : "+x"(x.a), "+x"(x.b));
    return x;
}

static inline void f32_store(float *y, f32x16 x) {
    _mm256_storeu_ps(y, x.a);
    _mm256_storeu_ps(y + 8, x.b);
}

static inline f32x16 f32_add(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_add_ps, x, y); }
static inline f32x16 f32_sub(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_sub_ps, x, y); }
static inline f32x16 f32_mul(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_mul_ps, x, y); }
static inline f32x16 f32_div(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_div_ps, x, y); }
static inline f32x16 f32_max(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_max_ps, x, y); }
static inline f32x16 f32_min(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(_mm256_min_ps, x, y); }
static inline f32x16 f32_fma(f32x16 x, f32x16 y, f32x16 z) {
    return (f32x16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline f32x16 f32_fnma(f32x16 x, f32x16 y, f32x16 z) {
    return (f32x16){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
static inline f32x16 f32_round(f32x16 x) {
    return (f32x16){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT), _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT)};
}
static inline f32x16 i32_as_f32(i32x16 x) { return (f32x16)EACH(_mm256_castsi256_ps, x); }
static inline i32x16 f32_as_i32(f32x16 x) { return (i32x16)EACH(_mm256_castps_si256, x); }

static inline i32x16 i32_zero(void) { return (i32x16){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline i32x16 i32_set1(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline i32x16 i32_broadcast(const void *x) { /* as fp32: gcc takes integers through a general register */
    __m256i word = _mm256_castps_si256(_mm256_broadcast_ss((const float *)x));
    return (i32x16){word, word};
}
static inline i32x16 i32_in_registers(i32x16 x) {
    __asm__("" : "+x"(x.a), "+x"(x.b));
    return x;
}
static inline i32x16 i32_load(const void *x) {
    return (i32x16){_mm256_loadu_si256((const __m256i *)x), _mm256_loadu_si256((const __m256i *)x + 1)};
}
static inline i32x16 i32_add(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(_mm256_add_epi32, x, y); }
static inline i32x16 i32_sub(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(_mm256_sub_epi32, x, y); }
static inline i32x16 i32_and(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(_mm256_and_si256, x, y); }
static inline i32x16 i32_or(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(_mm256_or_si256, x, y); }
static inline i32x16 i32_shift_left(i32x16 x, int bits) {
    return (i32x16){_mm256_slli_epi32(x.a, bits), _mm256_slli_epi32(x.b, bits)};
}
static inline i32x16 i32_shift_right(i32x16 x, int bits) {
    return (i32x16){_mm256_srli_epi32(x.a, bits), _mm256_srli_epi32(x.b, bits)};
}
static inline i32x16 i32_swap_halves(i32x16 x) {
    const __m128i order = _mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const __m256i both = _mm256_broadcastsi128_si256(order);
    return (i32x16){_mm256_shuffle_epi8(x.a, both), _mm256_shuffle_epi8(x.b, both)};
}

static inline f32x16 i32_to_f32(i32x16 x) { return (f32x16)EACH(_mm256_cvtepi32_ps, x); }
static inline i32x16 f32_to_i32(f32x16 x) { return (i32x16)EACH(_mm256_cvtps_epi32, x); }

static inline void i32_store(void *y, i32x16 x) {
    _mm256_storeu_si256((__m256i *)y, x.a);
    _mm256_storeu_si256((__m256i *)y + 1, x.b);
}

static inline f32x16 f32_abs(f32x16 x) { return i32_as_f32(i32_and(f32_as_i32(x), i32_set1(0x7fffffff))); }
static inline f32x16 f32_reciprocal(f32x16 x) { return f32_div(f32_set1(1.0f), x); }

static inline f32x16 f32_scale(f32x16 x, f32x16 whole) {
    return f32_mul(x, i32_as_f32(i32_shift_left(i32_add(f32_to_i32(whole), i32_set1(127)), 23)));
}

static inline float f32_reduce_add(f32x16 x) {
    __m256 half = _mm256_add_ps(x.b, x.a);
    __m128 quarter = _mm_add_ps(_mm256_extractf128_ps(half, 1), _mm256_castps256_ps128(half));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

static inline float f32_reduce_max(f32x16 x) {
    __m256 half = _mm256_max_ps(x.b, x.a);
    __m128 quarter = _mm_max_ps(_mm256_extractf128_ps(half, 1), _mm256_castps256_ps128(half));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}

static inline int f32_any_greater(f32x16 x, f32x16 y) {
    __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), b = _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(a, b));
}

static inline mask16 lanes_between(int64_t first, int64_t stop, int64_t i) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    const __m256i before = _mm256_set1_epi32((int32_t)(first - i)), end = _mm256_set1_epi32((int32_t)(stop - i));
    return (mask16){
        _mm256_andnot_si256(_mm256_cmpgt_epi32(before, low), _mm256_cmpgt_epi32(end, low)),
        _mm256_andnot_si256(_mm256_cmpgt_epi32(before, high), _mm256_cmpgt_epi32(end, high)),
    };
}

static inline f32x16 f32_keep(mask16 mask, f32x16 x) { return i32_as_f32(i32_and(mask, f32_as_i32(x))); }

static inline f32x16 f32_mask_max(mask16 mask, f32x16 x, f32x16 y) {
    f32x16 max = f32_max(x, y), in = i32_as_f32(mask);
    return (f32x16){_mm256_blendv_ps(x.a, max.a, in.a), _mm256_blendv_ps(x.b, max.b, in.b)};
}

static inline void i32_store_bytes(uint8_t *y, i32x16 x) {
    const __m256i low_bytes = _mm256_set1_epi32(0xff), order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.a, low_bytes), _mm256_and_si256(x.b, low_bytes));
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), order);
    _mm_storeu_si128((__m128i *)y, _mm256_castsi256_si128(bytes));
}

static inline i32x16 low_nibbles(i32x16 x) { return i32_and(x, i32_set1(0x0f0f0f0f)); }
static inline i32x16 high_nibbles(i32x16 x) { return low_nibbles(i32_shift_right(x, 4)); }

static inline f32x16 load_f16(const void *x) {
    const __m128i *from = (const __m128i *)x;
    return (f32x16){_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
}

static inline f32x16 load_i8(const void *x) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return i32_to_f32((i32x16){_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))});
}

static inline f32x16 load_u8(const void *x) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return i32_to_f32((i32x16){_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))});
}

static inline i32x16 i32_load_i16(const void *x) {
    const __m128i *from = (const __m128i *)x;
    return (i32x16){_mm256_cvtepi16_epi32(_mm_loadu_si128(from)), _mm256_cvtepi16_epi32(_mm_loadu_si128(from + 1))};
}

static inline f32x16 load_bf16(const uint16_t *x) { return i32_as_f32(i32_shift_left(i32_load_i16(x), 16)); }

static inline void i32_store_i16(void *y, i32x16 x) { /* of words below 65536 */
    __m256i packed = _mm256_packus_epi32(x.a, x.b);
    _mm256_storeu_si256((__m256i *)y, _mm256_permute4x64_epi64(packed, 0xd8));
}

static inline i32x16 i32_load_words(const void *x, int64_t count) {
    const __m256i *from = (const __m256i *)x;
    return (i32x16){_mm256_loadu_si256(from), count < 16 ? _mm256_setzero_si256() : _mm256_loadu_si256(from + 1)};
}

static inline i32x16 i32_repeat4(const void *x) {
    __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)x));
    return (i32x16){four, four};
}

static inline __m256 reduce_quarters(__m256 p, __m256 q, __m256 r, __m256 s) {
    __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q));
    __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(r, s), _mm256_unpackhi_ps(r, s));
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}

static inline f32x16 f32_reduce_quarters(const f32x16 *x) {
    return (f32x16){reduce_quarters(x[0].a, x[1].a, x[2].a, x[3].a), reduce_quarters(x[0].b, x[1].b, x[2].b, x[3].b)};
}

static inline void transpose_4x4(const int32_t *const *rows, int32_t *out, int64_t stride) {
    __m128 a = _mm_loadu_ps((const float *)rows[0]), b = _mm_loadu_ps((const float *)rows[1]);
    __m128 c = _mm_loadu_ps((const float *)rows[2]), d = _mm_loadu_ps((const float *)rows[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps((float *)out, a);
    _mm_storeu_ps((float *)(out + stride), b);
    _mm_storeu_ps((float *)(out + 2 * stride), c);
    _mm_storeu_ps((float *)(out + 3 * stride), d);
}

static inline i32x16 interleave_i16(const void *x, const void *y) {
    __m256i a = _mm256_loadu_si256((const __m256i *)x), b = _mm256_loadu_si256((const __m256i *)y);
    __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    return (i32x16){_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}

#ifdef __AVXVNNI__
enum { INT8_SHIFT = 128 };

static inline i32x16 dot_i8(i32x16 sums, i32x16 codes, i32x16 w) {
    return (i32x16){_mm256_dpbusd_avx_epi32(sums.a, codes.a, w.a), _mm256_dpbusd_avx_epi32(sums.b, codes.b, w.b)};
}
static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) { return dot_i8(part, nibbles, codes); }
static inline i32x16 u4_sums(i32x16 part) { return part; }
static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) { return dot_i8(dot_i8(sums, a, x), b, y); }
#else
enum { INT8_SHIFT = 0 };

/* Products of unsigned by signed bytes are summed in pairs that fit in sixteen bits: |x| times w with the sign of x. */
static inline __m256i dot_i8_half(__m256i sums, __m256i codes, __m256i weights) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(weights, codes));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline i32x16 dot_i8(i32x16 sums, i32x16 codes, i32x16 w) {
    return (i32x16){dot_i8_half(sums.a, codes.a, w.a), dot_i8_half(sums.b, codes.b, w.b)};
}

static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) {
    return (i32x16){
        _mm256_add_epi16(part.a, _mm256_maddubs_epi16(nibbles.a, codes.a)),
        _mm256_add_epi16(part.b, _mm256_maddubs_epi16(nibbles.b, codes.b)),
    };
}

static inline i32x16 u4_sums(i32x16 part) {
    const __m256i ones = _mm256_set1_epi16(1);
    return (i32x16){_mm256_madd_epi16(part.a, ones), _mm256_madd_epi16(part.b, ones)};
}

static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) { /* four products fit in sixteen bits */
    return i32_add(sums, u4_sums(dot_u4(dot_u4(i32_zero(), a, x), b, y)));
}
#endif

#endif
