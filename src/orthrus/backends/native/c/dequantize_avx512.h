/* Group-quantised weights expanded to bf16 in registers (AVX512-BF16). */
#ifndef ORTHRUS_DEQUANTIZE_AVX512_H
#define ORTHRUS_DEQUANTIZE_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#include "group_quantized.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "simd.h"

/* The integers from `first` to `first` + 31 in bf16, exactly. */
static inline __m512i bf16_integers(float first) {
    const __m512 lanes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 low = _mm512_add_ps(lanes, _mm512_set1_ps(first)), high = _mm512_add_ps(low, _mm512_set1_ps(LANES));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

ALWAYS_INLINE __m512i shift_words_left(__m512i words, int bits) {
    return bits > 0 ? _mm512_slli_epi16(words, bits) : bits < 0 ? _mm512_srli_epi16(words, -bits) : words;
}

/* The weights of the outputs q, q + 4, q + 8, q + 12 by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. Codes of five
 * and six bits are four low bits, as in Q4, and one or two high ones, a word holding those of several c and q. Word 2 i of
 * the codes belongs to word i of w[c], word 2 i + 1 to word 16 + i: halves of a word of 32 bits are cheap to take apart. */
ALWAYS_INLINE void dequantize_long_quad(const int64_t format, const char *codes, const GroupScales *by, int q, i32x16 *w) {
    const int six_bits = format == FORMAT_Q6_K;
    const __m512i low_bits = _mm512_set1_epi16(15), odd_words = _mm512_set1_epi32((int32_t)0xffff0000);
    const __m512i integers = bf16_integers(six_bits ? -32 : 0), more_integers = bf16_integers(0);
    const __m512i first_half = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4),
                                                _mm512_set1_epi32(q));
    const __m512i second_half = _mm512_add_epi32(first_half, _mm512_set1_epi32(8));
    __m512i low = _mm512_loadu_si512(codes + 64 * q), high = _mm512_loadu_si512(codes + 256 + (six_bits ? 64 * (q / 2) : 0));
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i above = shift_words_left(high, six_bits ? 4 - 2 * (4 * (q & 1) + c) : 4 - (4 * q + c));
        __m512i index = _mm512_ternarylogic_epi32(low_bits, shift_words_left(low, -4 * c), above, 0xCA);
        __m512i code = six_bits ? _mm512_permutex2var_epi16(integers, index, more_integers)
                                : _mm512_permutexvar_epi16(index, integers);
        __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(code, 16));
        __m512 b = _mm512_castsi512_ps(_mm512_and_si512(code, odd_words));
        __m512 scales = _mm512_loadu_ps(six_bits && c >= 2 ? by->second_scale : by->scale);
        __m512 scale_a = _mm512_permutexvar_ps(first_half, scales), scale_b = _mm512_permutexvar_ps(second_half, scales);
        if (six_bits) a = _mm512_mul_ps(a, scale_a), b = _mm512_mul_ps(b, scale_b);
        else {
            __m512 mins = _mm512_loadu_ps(by->min);
            a = _mm512_fmadd_ps(a, scale_a, _mm512_permutexvar_ps(first_half, mins));
            b = _mm512_fmadd_ps(b, scale_b, _mm512_permutexvar_ps(second_half, mins));
        }
        w[c] = (i32x16)_mm512_cvtne2ps_pbh(b, a);
    }
}
/* The weights of four outputs, 4 apart, by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. */
ALWAYS_INLINE void dequantize_quad(const int64_t format, const char *group, const GroupScales *by, int q, i32x16 *w) {
    if (format == FORMAT_Q5_K || format == FORMAT_Q6_K || has_five_bits(format)) dequantize_long_quad(format, group, by, q, w);
    else if (format != FORMAT_Q8) { /* at four bits a group has at most sixteen different values per output: look them up */
        const f32x16 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const i32x16 code_mask = _mm512_set1_epi16(15);
        const int64_t one = 0x10001000100010; /* four words of 16 */
        const i32x16 output = _mm512_set_epi64(3 * one, 3 * one, 2 * one, 2 * one, one, one, 0, 0);
        f32x16 values[4];
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++)
            values[l] = f32_fma(codes, f32_broadcast(by->scale + 4 * l + q), f32_broadcast(by->min + 4 * l + q));
        i32x16 low = (i32x16)_mm512_cvtne2ps_pbh(values[1], values[0]);
        i32x16 high = (i32x16)_mm512_cvtne2ps_pbh(values[3], values[2]);
        i32x16 packed = i32_load(group + 64 * q);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            i32x16 index = _mm512_ternarylogic_epi32(c ? _mm512_srli_epi16(packed, 4 * c) : packed, code_mask, output, 0xEA);
            w[c] = _mm512_permutex2var_epi16(low, index, high);
        }
    } else {
        f32x16 all = f32_load(by->scale);
        i32x16 half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
        f32x16 low = _mm512_permutexvar_ps(i32_add(half, i32_set1(q)), all);
        f32x16 high = _mm512_permutexvar_ps(i32_add(half, i32_set1(q + 8)), all);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const __m128i *codes = (const __m128i *)(group + 32 * (4 * c + q));
            f32x16 a = i32_to_f32(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes)));
            f32x16 b = i32_to_f32(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes + 1)));
            w[c] = (i32x16)_mm512_cvtne2ps_pbh(f32_mul(b, high), f32_mul(a, low));
        }
    }
}

#endif
