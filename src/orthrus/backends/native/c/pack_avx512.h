/* pack.h on AVX-512. */
#ifndef ORTHRUS_PACK_AVX512_H
#define ORTHRUS_PACK_AVX512_H

#include <immintrin.h>
#include <stdint.h>

/* 16 x 16 words: out[16 i + j] = rows[j][i]. The rows lie `stride` words apart; there are `count` of them with `words` words
 * each, and zeros stand for the others. */
static inline void transpose_16x16(const int32_t *rows, int64_t stride, int64_t count, int64_t words, int32_t *out) {
    __m512i a[16], b[16];
    __mmask16 present = (__mmask16)(words < 16 ? (1 << words) - 1 : 0xffff);
    for (int64_t j = 0; j < 16; j++)
        a[j] = j < count ? _mm512_maskz_loadu_epi32(present, rows + j * stride) : _mm512_setzero_si512();
    for (int j = 0; j < 16; j += 2) {
        b[j] = _mm512_unpacklo_epi32(a[j], a[j + 1]);
        b[j + 1] = _mm512_unpackhi_epi32(a[j], a[j + 1]);
    }
    for (int j = 0; j < 16; j += 4) {
        a[j] = _mm512_unpacklo_epi64(b[j], b[j + 2]);
        a[j + 1] = _mm512_unpackhi_epi64(b[j], b[j + 2]);
        a[j + 2] = _mm512_unpacklo_epi64(b[j + 1], b[j + 3]);
        a[j + 3] = _mm512_unpackhi_epi64(b[j + 1], b[j + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), high = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88), high2 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
        _mm512_storeu_si512(out + 16 * i, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(out + 16 * (i + 4), _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(out + 16 * (i + 8), _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(out + 16 * (i + 12), _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}

/* The values of two keys, interleaved: of 16 features in pairs[0], of 16 more in pairs[1]. Zeros stand for keys beyond
 * `count` and for features outside the mask. */
static inline void interleave_pairs(const uint16_t *v, int64_t count, int64_t size, uint32_t features, __m512i *pairs) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36,
                                         4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i a = _mm512_maskz_loadu_epi16(count > 0 ? features : 0, v);
    __m512i b = _mm512_maskz_loadu_epi16(count > 1 ? features : 0, v + size);
    pairs[0] = _mm512_permutex2var_epi16(a, low, b);
    pairs[1] = _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, _mm512_set1_epi16(16)), b);
}

/* 8 inputs of 16 outputs, in place: [4][4 outputs, 4 apart][8] as for dot products become [4][16 outputs][2] as for tiles. */
static inline void quads_to_pairs(uint16_t *weights) {
    __m512i w[4];
    for (int q = 0; q < 4; q++) w[q] = _mm512_loadu_si512(weights + 32 * q);
    __m512i a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpackhi_epi32(w[0], w[1]);
    __m512i c = _mm512_unpacklo_epi32(w[2], w[3]), d = _mm512_unpackhi_epi32(w[2], w[3]);
    _mm512_storeu_si512(weights, _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(weights + 32, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(weights + 64, _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(weights + 96, _mm512_unpackhi_epi64(b, d));
}
#endif
