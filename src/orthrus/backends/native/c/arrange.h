/* Keys, values and weights in the order in which the products of attention read them: see attention.h. */

/* 16 x 16 words: out[16 i + j] = rows[j][i], of which there are `count` rows and `words` words; zeros for the others. */
static inline void transpose(const int32_t *rows, int64_t stride, int64_t count, int64_t words, int32_t *out) {
    __m512i a[16], b[16];
    __mmask16 there = (__mmask16)(words < 16 ? (1 << words) - 1 : 0xffff);
    for (int64_t j = 0; j < 16; j++)
        a[j] = j < count ? _mm512_maskz_loadu_epi32(there, rows + j * stride) : _mm512_setzero_si512();
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

#ifdef BFLOAT16
/* Values of two keys side by side: of 16 features, and of 16 more. Zeros for keys and `features` that are not there. */
static inline void pair_features(const VALUE *v, int64_t there, int64_t size, __mmask32 features, __m512i *pairs) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36,
                                         4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i a = _mm512_maskz_loadu_epi16(there > 0 ? features : 0, v);
    __m512i b = _mm512_maskz_loadu_epi16(there > 1 ? features : 0, v + size);
    pairs[0] = _mm512_permutex2var_epi16(a, low, b);
    pairs[1] = _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, _mm512_set1_epi16(16)), b);
}

/* A row of fp32 weights becomes bf16, in its place. */
static inline void narrow(float *weights, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store_lanes((VALUE *)weights + i, _mm512_loadu_ps(weights + i));
}
#endif
