/* Products of expanded weights for processors without dot products of bf16, which would have to take every pair of bf16 apart
 * for every few rows: weights and rows are expanded to fp32. The sums are those of gemm_bf16.h, in the same order. */
#ifndef ORTHRUS_GEMM_EXPANDED_H
#define ORTHRUS_GEMM_EXPANDED_H

#include <stdint.h>

#include "dequantize.h"
#include "dispatch.h"
#include "gemm_bf16.h"
#include "linear_dequant.h"
#include "simd.h"

#if defined(BFLOAT16) && !defined(HAVE_BF16_DOT)
/* The most rows whose sums fit in registers. */
#if SIMD_REGISTERS == 32
#define EXPANDED_MAX_ROWS 12
#else
#define EXPANDED_MAX_ROWS 6
#endif

/* A panel of 16 outputs to fp32: [4][inputs / 8][even, odd][4 outputs, 4 apart][4 inputs]. */
ALWAYS_INLINE void expand_panel(const int64_t format, const char *panel, int64_t depth, float *expanded) {
    for (int64_t k = 0; k < depth; k += GROUP) {
        GroupScales scales;
        const char *codes = load_group(format, panel, k, &scales);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                WeightPairs weights = dequantize_pairs(format, codes, &scales, q, c);
                float *to = expanded + 4 * (q * depth + k + DOT_INPUTS * c);
                f32_store(to, weights.even);
                f32_store(to + LANES, weights.odd);
            }
    }
}

/* `rows` rows, of every eight inputs four even ones and four odd ones, by an expanded panel. */
ALWAYS_INLINE void gemm_expanded_rows(const int rows, const float *x, const float *expanded, const scalar_t *bias, scalar_t *y,
                                      int64_t depth, int64_t outputs) {
    f32x16 all[EXPANDED_MAX_ROWS][4];
    for (int q = 0; q < 4; q++) {
        f32x16 sums[EXPANDED_MAX_ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) sums[r] = f32_zero();
        for (int64_t k = 0; k < depth; k += DOT_INPUTS / 2, expanded += LANES) {
            f32x16 weights = f32_in_registers(f32_load(expanded));
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) sums[r] = f32_fma(f32_repeat4(x + r * depth + k), weights, sums[r]);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) all[r][q] = sums[r];
    }
    for (int r = 0; r < rows; r++) store_partial_sums(all[r], bias, y + r * outputs);
}

/* All rows by an expanded panel. */
static void gemm_expanded_panel(const float *x, const float *expanded, const scalar_t *bias, scalar_t *y, int64_t rows,
                                int64_t depth, int64_t outputs) {
    for (int64_t r = 0, taken; r < rows; r += taken) {
        taken = next_rows(rows - r, EXPANDED_MAX_ROWS);
        DISPATCH_ROWS(EXPANDED_MAX_ROWS, taken, gemm_expanded_rows, x + r * depth, expanded, bias, y + r * outputs, depth,
                      outputs)
    }
}
#endif

#endif
