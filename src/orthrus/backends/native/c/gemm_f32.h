/* Products in fp32, by fused multiply-adds. */
#ifndef ORTHRUS_GEMM_F32_H
#define ORTHRUS_GEMM_F32_H

#include <stdint.h>

#include "dispatch.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifndef BFLOAT16
/* Outputs of a panel; the most rows whose sums fit in registers. */
enum { GEMM_PANEL = 2 * LANES };
#if SIMD_REGISTERS == 32
#define GEMM_MAX_ROWS 12
#else
#define GEMM_MAX_ROWS 3
#endif

/* `rows` rows by one panel of 32 outputs. */
ALWAYS_INLINE void gemm_rows(const int rows, const float *x, const float *w, const float *bias, float *y, int64_t depth,
                             int64_t outputs) {
    f32x16 low[GEMM_MAX_ROWS], high[GEMM_MAX_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = f32_zero();
    for (int64_t k = 0; k < depth; k++, w += GEMM_PANEL) {
        if (rows > 1) prefetch_ahead(w), prefetch_ahead(w + LANES);
        f32x16 w_low = f32_load(w), w_high = f32_load(w + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            f32x16 value = f32_set1(x[r * depth + k]);
            low[r] = f32_fma(value, w_low, low[r]);
            high[r] = f32_fma(value, w_high, high[r]);
        }
    }
    f32x16 b_low = bias ? f32_load(bias) : f32_zero();
    f32x16 b_high = bias ? f32_load(bias + LANES) : f32_zero();
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        f32_store(y + r * outputs, f32_add(low[r], b_low));
        f32_store(y + r * outputs + LANES, f32_add(high[r], b_high));
    }
}

/* How many inputs of an output lie next to each other in the packed weights; 0 where there is no product for the depth. */
static inline int64_t interleave_of(int64_t depth) { return depth > 0; }

/* The outputs in `range` of y = x w^T + bias. Weights are packed [outputs / 32][inputs][32 outputs]. */
static void gemm(const float *x, const LinearWeights *w, float *y, int64_t rows, Range range) {
    int64_t depth = w->inputs, outputs = w->outputs;
    for (int64_t out = range.begin; out < range.end; out += GEMM_PANEL) {
        const float *panel = (const float *)w->weight + out * depth, *bias = bias_at(w, out);
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_rows(rows - r, GEMM_MAX_ROWS);
            DISPATCH_ROWS(GEMM_MAX_ROWS, taken, gemm_rows, x + r * depth, panel, bias, y + r * outputs + out, depth, outputs)
        }
    }
}
#endif

#endif
