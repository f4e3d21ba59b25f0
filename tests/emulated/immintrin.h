/* The AVX-512 and AMX instructions of the kernels, in C on AVX2: see test_emulated.py. Comes after the system's header, and
 * replaces the intrinsics that `names.h` lists by functions of the names `emulated_*`.
 *
 * Products of bf16 take denormals as zeros and sum the odd value of a pair before the even one, as the manuals say. A load
 * or store that must be aligned and is not, and a tile that does not fit its product, end the process. */
#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#include_next <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EMULATED static inline __attribute__((unused))

typedef union {
    __m512 f;
    __m512i i;
    __m256 f256[2];
    __m256i i256[2];
    __m128i i128[4];
    float f32[16];
    int32_t i32[16];
    int64_t i64[8];
    int16_t i16[32];
    uint16_t u16[32];
    int8_t i8[64];
    uint8_t u8[64];
} Wide;

static inline Wide of_f(__m512 a) { return (Wide){.f = a}; }
static inline Wide of_i(__m512i a) { return (Wide){.i = a}; }

/* By halves, with the AVX2 instruction of the same meaning. */
#define HALVES(name, type, of, field, result, out, op)                                                                 \
    EMULATED type name(type a, type b) {                                                                               \
        Wide x = of(a), y = of(b), r;                                                                                  \
        for (int h = 0; h < 2; h++) r.out[h] = op(x.field[h], y.field[h]);                                             \
        return r.result;                                                                                               \
    }
#define FLOATS(name) HALVES(emulated_##name, __m512, of_f, f256, f, f256, _mm256_##name)
#define INTEGERS(name) HALVES(emulated_##name, __m512i, of_i, i256, i, i256, _mm256_##name)
FLOATS(add_ps)
FLOATS(sub_ps)
FLOATS(mul_ps)
FLOATS(div_ps)
FLOATS(max_ps)
FLOATS(min_ps)
FLOATS(unpacklo_ps)
FLOATS(unpackhi_ps)
INTEGERS(add_epi32)
INTEGERS(sub_epi32)
INTEGERS(add_epi16)
INTEGERS(unpacklo_epi32)
INTEGERS(unpackhi_epi32)
INTEGERS(unpacklo_epi64)
INTEGERS(unpackhi_epi64)
INTEGERS(maddubs_epi16)
INTEGERS(madd_epi16)
EMULATED __m512i emulated_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i emulated_or_si512(__m512i a, __m512i b) { return a | b; }

#define FUSED(name)                                                                                                    \
    EMULATED __m512 emulated_##name(__m512 a, __m512 b, __m512 c) {                                                    \
        Wide x = of_f(a), y = of_f(b), z = of_f(c), r;                                                                 \
        for (int h = 0; h < 2; h++) r.f256[h] = _mm256_##name(x.f256[h], y.f256[h], z.f256[h]);                        \
        return r.f;                                                                                                    \
    }
FUSED(fmadd_ps)
FUSED(fnmadd_ps)

#define SHIFT(name, in)                                                                                                \
    EMULATED __m512i emulated_##name(__m512i a, unsigned bits) {                                                       \
        Wide x = of_i(a), r;                                                                                           \
        for (int h = 0; h < 2; h++) r.i256[h] = in(x.i256[h], _mm_cvtsi32_si128((int)bits));                           \
        return r.i;                                                                                                    \
    }
SHIFT(slli_epi32, _mm256_sll_epi32)
SHIFT(srli_epi32, _mm256_srl_epi32)
SHIFT(slli_epi16, _mm256_sll_epi16)
SHIFT(srli_epi16, _mm256_srl_epi16)

/* Lane by lane: `i` is the lane, r the result, and the arguments are unions. */
#define LANES_OF(count, statement)                                                                                     \
    Wide r = {0};                                                                                                      \
    for (int i = 0; i < (count); i++) statement

EMULATED __m512i emulated_rol_epi32(__m512i a, int bits) {
    Wide x = of_i(a);
    LANES_OF(16, r.i32[i] = (int32_t)((uint32_t)x.i32[i] << bits | (uint32_t)x.i32[i] >> (32 - bits)));
    return r.i;
}
EMULATED __m512 emulated_setzero_ps(void) { return (__m512){0}; }
EMULATED __m512i emulated_setzero_si512(void) { return (__m512i){0}; }
EMULATED __m512 emulated_set1_ps(float a) {
    LANES_OF(16, r.f32[i] = a);
    return r.f;
}
EMULATED __m512i emulated_set1_epi32(int a) {
    LANES_OF(16, r.i32[i] = a);
    return r.i;
}
EMULATED __m512i emulated_set1_epi16(short a) {
    LANES_OF(32, r.i16[i] = a);
    return r.i;
}
EMULATED __m512i emulated_set1_epi8(char a) {
    LANES_OF(64, r.i8[i] = (int8_t)a);
    return r.i;
}
#define emulated_setr_ps(...) ((Wide){.f32 = {__VA_ARGS__}}.f)
#define emulated_setr_epi32(...) ((Wide){.i32 = {__VA_ARGS__}}.i)
EMULATED Wide reversed(Wide a, int count) {
    LANES_OF(count, count == 8 ? (void)(r.i64[i] = a.i64[7 - i]) : (void)(r.i16[i] = a.i16[31 - i]));
    return r;
}
#define emulated_set_epi64(...) (reversed((Wide){.i64 = {__VA_ARGS__}}, 8).i)
#define emulated_set_epi16(...) (reversed((Wide){.i16 = {__VA_ARGS__}}, 32).i)

EMULATED __m512i emulated_loadu_si512(const void *a) {
    Wide r;
    memcpy(&r, a, sizeof r);
    return r.i;
}
EMULATED void emulated_storeu_si512(void *a, __m512i x) { memcpy(a, &x, sizeof x); }
EMULATED void must_be_aligned(const void *a) {
    if ((uintptr_t)a % 64) __builtin_trap();
}
EMULATED __m512i emulated_load_si512(const void *a) {
    must_be_aligned(a);
    return emulated_loadu_si512(a);
}
EMULATED void emulated_store_si512(void *a, __m512i x) {
    must_be_aligned(a);
    emulated_storeu_si512(a, x);
}
EMULATED __m512 emulated_loadu_ps(const void *a) { return (__m512)emulated_loadu_si512(a); }
EMULATED __m512 emulated_load_ps(const void *a) { return (__m512)emulated_load_si512(a); }
EMULATED void emulated_storeu_ps(void *a, __m512 x) { emulated_storeu_si512(a, (__m512i)x); }
EMULATED __m512i emulated_maskz_loadu_epi16(uint32_t mask, const void *a) {
    LANES_OF(32, if (mask >> i & 1) memcpy(r.i16 + i, (const char *)a + 2 * i, 2));
    return r.i;
}
EMULATED __m512i emulated_maskz_loadu_epi32(__mmask16 mask, const void *a) {
    LANES_OF(16, if (mask >> i & 1) memcpy(r.i32 + i, (const char *)a + 4 * i, 4));
    return r.i;
}

EMULATED __m512 emulated_castsi512_ps(__m512i a) { return (__m512)a; }
EMULATED __m512i emulated_castps_si512(__m512 a) { return (__m512i)a; }
EMULATED __m512i emulated_zextsi256_si512(__m256i a) { return (Wide){.i256 = {a}}.i; }
EMULATED __m512 emulated_abs_ps(__m512 a) {
    LANES_OF(16, r.f32[i] = fabsf(of_f(a).f32[i]));
    return r.f;
}
EMULATED __m512i emulated_abs_epi8(__m512i a) {
    Wide x = of_i(a), r;
    for (int h = 0; h < 2; h++) r.i256[h] = _mm256_abs_epi8(x.i256[h]);
    return r.i;
}
EMULATED __m512 emulated_roundscale_ps(__m512 a, int places) {
    LANES_OF(16, r.f32[i] = places ? NAN : rintf(of_f(a).f32[i]));
    return r.f;
}
EMULATED __m512 emulated_scalef_ps(__m512 a, __m512 b) {
    Wide x = of_f(a), y = of_f(b);
    LANES_OF(16, r.f32[i] = isnan(y.f32[i]) ? NAN : scalbnf(x.f32[i], (int)fmaxf(-1e3f, fminf(1e3f, floorf(y.f32[i])))));
    return r.f;
}
EMULATED __m512 emulated_rcp14_ps(__m512 a) { /* fourteen bits of it */
    Wide x = of_f(a);
    LANES_OF(16, (r.f32[i] = 1.0f / x.f32[i], r.i32[i] &= ~0x1ff));
    return r.f;
}
EMULATED float emulated_reduce_add_ps(__m512 a) {
    Wide x = of_f(a);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x.f32[i] += x.f32[i + half];
    return x.f32[0];
}
EMULATED float emulated_reduce_max_ps(__m512 a) {
    Wide x = of_f(a);
    for (int i = 1; i < 16; i++) x.f32[0] = x.f32[i] > x.f32[0] ? x.f32[i] : x.f32[0];
    return x.f32[0];
}
EMULATED int emulated_reduce_add_epi32(__m512i a) {
    Wide x = of_i(a);
    for (int i = 1; i < 16; i++) x.i32[0] += x.i32[i];
    return x.i32[0];
}

#define EXTENDED(name, argument, from)                                                                                 \
    EMULATED __m512i emulated_##name(argument a) {                                                                     \
        from lanes[16];                                                                                                \
        memcpy(lanes, &a, sizeof lanes);                                                                               \
        LANES_OF(16, r.i32[i] = lanes[i]);                                                                             \
        return r.i;                                                                                                    \
    }
EXTENDED(cvtepi8_epi32, __m128i, int8_t)
EXTENDED(cvtepu8_epi32, __m128i, uint8_t)
EXTENDED(cvtepi16_epi32, __m256i, int16_t)
EXTENDED(cvtepu16_epi32, __m256i, uint16_t)
EMULATED __m128i emulated_cvtepi32_epi8(__m512i a) {
    LANES_OF(16, r.i8[i] = (int8_t)of_i(a).i32[i]);
    return r.i128[0];
}
EMULATED __m256i emulated_cvtepi32_epi16(__m512i a) {
    LANES_OF(16, r.i16[i] = (int16_t)of_i(a).i32[i]);
    return r.i256[0];
}
EMULATED __m512 emulated_cvtepi32_ps(__m512i a) {
    Wide x = of_i(a), r;
    for (int h = 0; h < 2; h++) r.f256[h] = _mm256_cvtepi32_ps(x.i256[h]);
    return r.f;
}
EMULATED __m512i emulated_cvtps_epi32(__m512 a) {
    Wide x = of_f(a), r;
    for (int h = 0; h < 2; h++) r.i256[h] = _mm256_cvtps_epi32(x.f256[h]);
    return r.i;
}
EMULATED __m512 emulated_cvtph_ps(__m256i a) {
    Wide x = {.i256 = {a}}, r;
    for (int h = 0; h < 2; h++) r.f256[h] = _mm256_cvtph_ps(x.i128[h]);
    return r.f;
}

EMULATED __mmask16 emulated_cmp_ps_mask(__m512 a, __m512 b, int greater) {
    if (greater != _CMP_GT_OQ) __builtin_trap();
    LANES_OF(16, r.u16[0] |= (uint16_t)((of_f(a).f32[i] > of_f(b).f32[i]) << i));
    return r.u16[0];
}
EMULATED uint64_t emulated_movepi8_mask(__m512i a) {
    LANES_OF(64, r.i64[0] |= (int64_t)((uint64_t)(of_i(a).i8[i] < 0) << i));
    return (uint64_t)r.i64[0];
}
EMULATED __m512i emulated_mask_sub_epi8(__m512i kept, uint64_t mask, __m512i a, __m512i b) {
    Wide x = of_i(a), y = of_i(b), z = of_i(kept);
    LANES_OF(64, r.u8[i] = mask >> i & 1 ? (uint8_t)(x.u8[i] - y.u8[i]) : z.u8[i]);
    return r.i;
}
EMULATED __m512 emulated_mask_max_ps(__m512 kept, __mmask16 mask, __m512 a, __m512 b) {
    Wide x = of_f(emulated_max_ps(a, b)), z = of_f(kept);
    LANES_OF(16, r.f32[i] = mask >> i & 1 ? x.f32[i] : z.f32[i]);
    return r.f;
}
EMULATED __m512 emulated_maskz_mov_ps(__mmask16 mask, __m512 a) {
    LANES_OF(16, r.f32[i] = mask >> i & 1 ? of_f(a).f32[i] : 0);
    return r.f;
}

EMULATED __m512 emulated_broadcast_f32x4(__m128 a) {
    LANES_OF(4, r.i128[i] = (__m128i)a);
    return r.f;
}
EMULATED __m512 emulated_permutevar_ps(__m512 a, __m512i places) {
    LANES_OF(16, r.f32[i] = of_f(a).f32[(i & 12) + (of_i(places).i32[i] & 3)]);
    return r.f;
}
EMULATED __m512 emulated_permutexvar_ps(__m512i places, __m512 a) {
    LANES_OF(16, r.f32[i] = of_f(a).f32[of_i(places).i32[i] & 15]);
    return r.f;
}
EMULATED __m512i emulated_permutexvar_epi16(__m512i places, __m512i a) {
    LANES_OF(32, r.i16[i] = of_i(a).i16[of_i(places).i16[i] & 31]);
    return r.i;
}
EMULATED __m512i emulated_permutex2var_epi16(__m512i a, __m512i places, __m512i b) {
    LANES_OF(32, r.i16[i] = of_i(of_i(places).i16[i] & 32 ? b : a).i16[of_i(places).i16[i] & 31]);
    return r.i;
}
EMULATED __m512 emulated_shuffle_ps(__m512 a, __m512 b, int places) {
    LANES_OF(16, r.f32[i] = of_f(i & 2 ? b : a).f32[(i & 12) + (places >> 2 * (i & 3) & 3)]);
    return r.f;
}
EMULATED __m512i emulated_shuffle_i32x4(__m512i a, __m512i b, int places) {
    LANES_OF(4, r.i128[i] = of_i(i & 2 ? b : a).i128[places >> 2 * i & 3]);
    return r.i;
}
EMULATED __m512i emulated_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    __m512i r = {0};
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}

EMULATED __m512i emulated_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
    Wide x = of_i(a), y = of_i(b), r = of_i(sums);
    for (int i = 0; i < 64; i++) r.i32[i / 4] += (int)x.u8[i] * (int)y.i8[i];
    return r.i;
}
EMULATED __m256i emulated_dpbusd_of_256(__m256i sums, __m256i a, __m256i b) {
    Wide x = {.i256 = {a}}, y = {.i256 = {b}}, z = {.i256 = {sums}};
    return of_i(emulated_dpbusd_epi32(z.i, x.i, y.i)).i256[0];
}

typedef __m512i emulated_m512bh;
typedef __m256i emulated_m256bh;

EMULATED float without_denormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
EMULATED float bf16_value(uint16_t a) {
    uint32_t bits = (uint32_t)a << 16;
    float x;
    memcpy(&x, &bits, 4);
    return without_denormal(x);
}
EMULATED float add_pair(float sum, const uint16_t *a, const uint16_t *b) {
    for (int i = 1; i >= 0; i--) sum = without_denormal(fmaf(bf16_value(a[i]), bf16_value(b[i]), without_denormal(sum)));
    return sum;
}
EMULATED __m512 emulated_dpbf16_ps(__m512 sums, emulated_m512bh a, emulated_m512bh b) {
    Wide x = of_i(a), y = of_i(b), z = of_f(sums);
    LANES_OF(16, r.f32[i] = add_pair(z.f32[i], x.u16 + 2 * i, y.u16 + 2 * i));
    return r.f;
}
EMULATED uint16_t nearest_even(float x) {
    uint32_t bits;
    x = without_denormal(x);
    memcpy(&bits, &x, 4);
    return (uint16_t)(isnan(x) ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMULATED emulated_m256bh emulated_cvtneps_pbh(__m512 a) {
    LANES_OF(16, r.u16[i] = nearest_even(of_f(a).f32[i]));
    return r.i256[0];
}
EMULATED emulated_m512bh emulated_cvtne2ps_pbh(__m512 a, __m512 b) {
    LANES_OF(32, r.u16[i] = nearest_even(of_f(i < 16 ? b : a).f32[i % 16]));
    return r.i;
}

#include "names.h"
#include "tiles.h"

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#ifdef EMULATED_BF16
#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1
#endif
#ifdef EMULATED_AMX
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
#endif

#endif
