/* Products in fp32, by fused multiply-adds (AVX-512). */
#ifndef ORTHRUS_GEMM_F32_H
#define ORTHRUS_GEMM_F32_H

#include <stdint.h>

#include "dispatch.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#if !defined(BFLOAT16) && defined(__AVX512F__)
/* Outputs of a panel; the most rows whose sums fit in registers. */
enum { GEMM_PANEL = 2 * LANES, GEMM_MAX_ROWS = 12 };

/* `rows` rows by one panel of 32 outputs. */
ALWAYS_INLINE void gemm_rows(const int rows, const float *x, const float *w, const float *bias, float *y, int64_t depth,
                             int64_t outputs) {
    __m512 low[GEMM_MAX_ROWS], high[GEMM_MAX_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++, w += GEMM_PANEL) {
        if (rows > 1) prefetch_ahead(w), prefetch_ahead(w + LANES);
        __m512 w_low = _mm512_loadu_ps(w), w_high = _mm512_loadu_ps(w + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[r * depth + k]);
            low[r] = _mm512_fmadd_ps(value, w_low, low[r]);
            high[r] = _mm512_fmadd_ps(value, w_high, high[r]);
        }
    }
    __m512 b_low = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    __m512 b_high = bias ? _mm512_loadu_ps(bias + LANES) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(y + r * outputs, _mm512_add_ps(low[r], b_low));
        _mm512_storeu_ps(y + r * outputs + LANES, _mm512_add_ps(high[r], b_high));
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
            DISPATCH_ROWS_12(taken, gemm_rows, x + r * depth, panel, bias, y + r * outputs + out, depth, outputs)
        }
    }
}
#endif

#endif
