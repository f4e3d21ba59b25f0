/* Products of groups of four bits by int8 on matrix tiles, for more rows than are cheaper by vectors: the same sums, in the same
 * order. See grouped.h. */
#if !defined(NO_TILES)
enum { TOGETHER = 4 };

/* Tiles 0-3 have sums, each of a group, 4-5 activations, 6-7 weights: a row of these has four inputs of 16 outputs. */
static void configure_grouped(int64_t rows) {
    struct tiles to = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        to.width[t] = t == 4 || t == 5 ? GROUP : STEP;
        to.rows[t] = t < 6 ? (uint8_t)rows : GROUP / 4;
    }
    _tile_loadconfig(&to);
}

/* A block's numbers, one to a byte. */
static inline void unpack_four(const char *block, uint8_t *numbers) {
    const __m512i lower = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        __m512i packed = _mm512_loadu_si512(block + 64 * t);
        _mm512_store_si512(numbers + 128 * t, _mm512_and_si512(packed, lower));
        _mm512_store_si512(numbers + 128 * t + 64, _mm512_and_si512(_mm512_srli_epi16(packed, 4), lower));
    }
}

/* Adds a group's sums to those of all, in fp32. */
static inline __attribute__((always_inline)) void add_group(const int32_t *found, const float *sums, int64_t next,
                                                            const char *block, __m512 *total, const int rows) {
    const __m256i *halves = (const __m256i *)(block + FOUR_BYTES);
    __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves - 2)), least = _mm512_cvtph_ps(_mm256_loadu_si256(halves - 1));
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(found + r * LANES)), scale, total[r]);
        total[r] = _mm512_fmadd_ps(_mm512_set1_ps(sums[r * next]), least, total[r]);
    }
}

/* Group g = k + i is multiplied while g + 2 is unpacked and g - 2 is added, as what is stored can't be loaded at once. */
#define EACH_GROUP(i, activations, weights)                                                                            \
    do {                                                                                                               \
        int64_t g = k + i;                                                                                             \
        if (g < blocks) {                                                                                              \
            _tile_zero(i);                                                                                             \
            _tile_loadd(activations, q + g * GROUP, depth);                                                            \
            _tile_loadd(weights, numbers[i], STEP);                                                                    \
            _tile_dpbsud(i, activations, weights);                                                                     \
        }                                                                                                              \
        if (g + 2 < blocks) {                                                                                          \
            for (int l = 0; l < FOUR_BYTES; l += 64) _mm_prefetch(ahead + (g + 2) * FOUR_BYTES + l, _MM_HINT_T0);      \
            unpack_four(w + 2 * (g + 2) * FOUR_BYTES, numbers[(i + 2) & 3]);                                           \
        }                                                                                                              \
        if (g >= 2 && g < blocks + 2)                                                                                  \
            add_group(found[(i + 2) & 3], sums + g - 2, blocks, w + 2 * (g - 2) * FOUR_BYTES, total, rows);            \
        if (g < blocks) _tile_stored(i, found[i], STEP);                                                               \
    } while (0)

/* `rows` (a constant where this is inlined) rows by 16 outputs, whose blocks lie two apart. Meanwhile weights come from `ahead`
 * on. */
static inline __attribute__((always_inline)) void tile_grouped(const int8_t *q, const float *sums, const float *row_scales,
                                                               const char *w, const char *ahead, const VALUE *bias, VALUE *y,
                                                               const int rows, int64_t depth, int64_t outputs) {
    uint8_t numbers[TOGETHER][TILE_VALUES] __attribute__((aligned(64)));
    int32_t found[TOGETHER][ROWS * LANES] __attribute__((aligned(64)));
    int64_t blocks = depth / GROUP;
    __m512 total[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < 2 && g < blocks; g++) unpack_four(w + 2 * g * FOUR_BYTES, numbers[g]);
    for (int64_t k = 0; k < blocks + 2; k += TOGETHER) {
        EACH_GROUP(0, 4, 6);
        EACH_GROUP(1, 5, 7);
        EACH_GROUP(2, 4, 6);
        EACH_GROUP(3, 5, 7);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) finish_grouped(total[r], row_scales[r], bias, y + r * outputs);
}

#define ROWS_OF(count)                                                                                                 \
    if (configured != count) configure_grouped(configured = count);                                                    \
    for (int g = 0; g < 2; g++)                                                                                        \
        tile_grouped(q + r * depth, sums + r * depth / GROUP, row_scales + r, from + g * FOUR_BYTES,                   \
                     from + (2 + g) * (depth / GROUP) * FOUR_BYTES, bias ? bias + out + g * LANES : 0,                 \
                     y + r * outputs + out + g * LANES, count, depth, outputs)
/* See multiply_grouped. */
static void multiply_grouped_tiles(const int8_t *q, const float *sums, const float *row_scales, const char *w,
                                   const VALUE *bias, VALUE *y, const int64_t *sizes, int64_t first, int64_t last) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2], configured = 0;
    for (int64_t out = first; out < last; out += 2 * LANES) {
        const char *from = w + out * depth / TILE_VALUES * FOUR_BYTES;
        EVERY_ROW(ROWS, UP_TO_SIXTEEN)
    }
    _tile_release();
}
#undef ROWS_OF
#endif
