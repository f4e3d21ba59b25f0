/* K-quants, as GGUF files hold them: 256 inputs of an output are a super-block. Its groups of 32 inputs (Q4_K, Q5_K) have a
 * scale and a minimum, its groups of 16 (Q6_K) a scale alone: integers in units of one fp16 number per super-block.
 *
 * A packed super-block is 256 inputs of 16 outputs: the units of the scales and, negated, of the minima (fp16); for every 32
 * inputs 16 scales and 16 minima (uint8), in Q6_K 16 scales of the first 16 inputs and 16 of the last (int8); the codes. */
#ifndef ORTHRUS_K_QUANTS_H
#define ORTHRUS_K_QUANTS_H

#include <stdint.h>

#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"

enum { SUPER_BLOCK = 256, SUPER_BLOCK_GROUPS = SUPER_BLOCK / GROUP };
enum { UNITS_BYTES = 4 * LANES, GROUP_SCALES_BYTES = 2 * LANES };
enum { K_HEADER_BYTES = UNITS_BYTES + SUPER_BLOCK_GROUPS * GROUP_SCALES_BYTES };

static inline int is_k_quant(int64_t format) { return format >= FORMAT_Q4_K && format <= FORMAT_Q6_K; }

/* Bytes of the codes of 32 inputs of 16 outputs. */
static inline int64_t k_codes_bytes(int64_t format) {
    return GROUP_WEIGHTS / 8 * (format == FORMAT_Q4_K ? 4 : format == FORMAT_Q5_K ? 5 : 6);
}

static inline int64_t super_block_bytes(int64_t format) {
    return K_HEADER_BYTES + SUPER_BLOCK_GROUPS * k_codes_bytes(format);
}

#if defined(HAVE_AVX512) && defined(HAVE_BF16_DOT)
/* The scales and minima of the group `g` of a super-block. Every product is exact. */
static inline void load_k_scales(int64_t format, const char *super_block, int64_t g, GroupScales *to) {
    const __m256i *units = (const __m256i *)super_block;
    const __m128i *scales = (const __m128i *)(super_block + UNITS_BYTES + g * GROUP_SCALES_BYTES);
    __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256(units));
    __m128i first = _mm_loadu_si128(scales), second = _mm_loadu_si128(scales + 1);
    if (format == FORMAT_Q6_K) {
        _mm512_storeu_ps(to->scale, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first))));
        _mm512_storeu_ps(to->second_scale, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second))));
    } else {
        __m512 minus_dmin = _mm512_cvtph_ps(_mm256_loadu_si256(units + 1));
        _mm512_storeu_ps(to->scale, _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(first))));
        _mm512_storeu_ps(to->min, _mm512_mul_ps(minus_dmin, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(second))));
    }
    __asm__("" : "+m"(*to)); /* otherwise the compiler keeps them in registers */
}

/* The integers from `first` to `first` + 31 in bf16, exactly. */
static inline __m512i bf16_integers(float first) {
    const __m512 lanes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 low = _mm512_add_ps(lanes, _mm512_set1_ps(first)), high = _mm512_add_ps(low, _mm512_set1_ps(LANES));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

ALWAYS_INLINE __m512i shift_words_left(__m512i words, int bits) {
    return bits > 0 ? _mm512_slli_epi16(words, bits) : bits < 0 ? _mm512_srli_epi16(words, -bits) : words;
}

/* The weights of the outputs q, q + 4, q + 8, q + 12 by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. Codes of Q5_K and Q6_K
 * are four low bits, as in Q4, and one or two high ones, a word holding those of several c and q. Word 2 i of the codes
 * belongs to word i of w[c], word 2 i + 1 to word 16 + i: halves of a word of 32 bits are cheap to take apart. */
ALWAYS_INLINE void dequantize_k_quad(const int64_t format, const char *codes, const GroupScales *by, int q, __m512bh *w) {
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
        w[c] = _mm512_cvtne2ps_pbh(b, a);
    }
}
#endif

#endif
