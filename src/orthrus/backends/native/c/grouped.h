/* Weights in groups of four bits x int8 activations with a scale per row: the weights as their file has them, multiplied as
 * integers. Sums within a group are exact; groups are added in order, in fp32. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
enum { GROUPED_ROWS = 6, FEW_ROWS = 4 /* by vectors where there are tiles: the sums are exact, so the bits are the same */ };

int has_linear_grouped(void) { return GROUP; }

/* One row to signed bytes, and the sum of each group of them; returns its scale. */
static float quantize_groups(const VALUE *x, int8_t *q, float *sums, int64_t depth) {
    float scale = quantize(x, (uint8_t *)q, depth);
    const __m256i ones = _mm256_set1_epi8(1), shift = _mm256_set1_epi8((char)SHIFT);
    for (int64_t i = 0; i < depth; i += GROUP) {
        __m256i *at = (__m256i *)(q + i), whole = _mm256_xor_si256(_mm256_loadu_si256(at), shift);
        _mm256_storeu_si256(at, whole);
        __m256i found = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, whole);
        sums[i / GROUP] = (float)_mm512_reduce_add_epi32(_mm512_zextsi256_si512(found));
    }
    return scale;
}

static inline void finish_grouped(__m512 total, float scale, const VALUE *bias, VALUE *y) {
    __m512 found = _mm512_mul_ps(total, _mm512_set1_ps(scale));
    store_lanes(y, bias ? _mm512_add_ps(found, load_lanes(bias)) : found);
}

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs. */
static inline __attribute__((always_inline)) void panel_grouped(const int8_t *q, const float *sums, const float *row_scales,
                                                                const char *w, const VALUE *bias, VALUE *y, const int rows,
                                                                int64_t depth, int64_t outputs) {
    const __m512i lower = _mm512_set1_epi8(15);
    __m512 total[GROUPED_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += GROUP, w += 2 * FOUR_BYTES) {
        __m512i part[GROUPED_ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) part[r][0] = part[r][1] = _mm512_setzero_si512();
        for (int l = 0; l < 2 * FOUR_BYTES; l += 64) fetch(w + l);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++)
#pragma GCC unroll 2
            for (int g = 0; g < 2; g++) {
                __m512i packed = _mm512_loadu_si512(w + g * FOUR_BYTES + 64 * t);
                __m512i low = _mm512_and_si512(packed, lower), high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), lower);
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) {
                    int32_t four[2];
                    memcpy(four, q + r * depth + k + 8 * t, 8);
                    part[r][g] = _mm512_dpbusd_epi32(part[r][g], low, _mm512_set1_epi32(four[0]));
                    part[r][g] = _mm512_dpbusd_epi32(part[r][g], high, _mm512_set1_epi32(four[1]));
                }
            }
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            const __m256i *halves = (const __m256i *)(w + (g + 1) * FOUR_BYTES);
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves - 2)), least = _mm512_cvtph_ps(_mm256_loadu_si256(halves - 1));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                total[r][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][g]), scale, total[r][g]);
                total[r][g] = _mm512_fmadd_ps(everywhere(sums + (r * depth + k) / GROUP), least, total[r][g]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++)
            finish_grouped(total[r][g], row_scales[r], bias ? bias + g * LANES : 0, y + r * outputs + g * LANES);
}

#include "tile_grouped.h"

#define ROWS_OF(count)                                                                                                 \
    panel_grouped(q + r * depth, sums + r * depth / GROUP, row_scales + r, from, bias ? bias + out : 0,                \
                  y + r * outputs + out, count, depth, outputs)
/* Outputs `first` to `last` of y [rows, outputs] = q w^T + bias; w [outputs / 32][depth / 32][2] blocks, in which a byte holds
 * two inputs of an output, 4 apart. */
static void multiply_grouped(const int8_t *q, const float *sums, const float *row_scales, const char *w, const VALUE *bias,
                             VALUE *y, const int64_t *sizes, int64_t first, int64_t last) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2];
#ifndef NO_TILES
    if (use_tiles && rows > FEW_ROWS) {
        multiply_grouped_tiles(q, sums, row_scales, w, bias, y, sizes, first, last);
        return;
    }
#endif
    for (int64_t out = first; out < last; out += 2 * LANES) {
        const char *from = w + out * depth / TILE_VALUES * FOUR_BYTES;
        EVERY_ROW(GROUPED_ROWS, UP_TO_SIX)
    }
}
#undef ROWS_OF

/* The whole of it; `q` [rows, depth], `sums` [rows, depth / 32] and `row_scales` [rows] are room for the rows of x. */
void linear_grouped(const VALUE *x, const char *w, const VALUE *bias, VALUE *y, int8_t *q, float *sums, float *row_scales,
                    const int64_t *sizes) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2], threads = sizes[3];
    for (int64_t r = 0; r < rows; r++)
        row_scales[r] = quantize_groups(x + r * depth, q + r * depth, sums + r * depth / GROUP, depth);
    EVERY_THREAD(multiply_grouped(q, sums, row_scales, w, bias, y, sizes, first, last))
}
#else
int has_linear_grouped(void) { return 0; }
#endif
