/* Linear maps whose weights stay quantised. They take as long to compile as all other kernels together, so they are a
 * translation unit of their own (linear_dequant.c), which is compiled beside the others. */
#ifndef ORTHRUS_LINEAR_DEQUANT_H
#define ORTHRUS_LINEAR_DEQUANT_H

#include <stdint.h>

#include "gemm.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifdef BFLOAT16

/* Rows at a time, and scalars of scratch memory that a thread needs: an expanded panel of 32 outputs and four tiles; or, where
 * there are no dot products of bf16, the rows and an expanded panel of 16 outputs in fp32. */
#ifdef HAVE_BF16_DOT
enum { DEQUANT_ROWS = 1 << 30 };

static inline int64_t dequant_scratch_scalars(int64_t depth) { return 2 * LANES * depth + 4 * GROUP_WEIGHTS; }
#else
enum { DEQUANT_ROWS = 48 };

static inline int64_t dequant_scratch_scalars(int64_t depth) { return 2 * (DEQUANT_ROWS + LANES) * depth; }
#endif

/* Whether the products of a map expand its weights. Those of bf16 are as fast without where there are dot products of bf16. */
static inline int expands_weights(const LinearWeights *w, int64_t rows) {
#ifdef HAVE_BF16_DOT
    (void)rows;
    return w->format != FORMAT_PLAIN;
#else
    return w->format != FORMAT_PLAIN || (rows > GEMM_MAX_ROWS && w->inputs % GROUP == 0);
#endif
}

/* The outputs in `range` of a map whose weights stay quantised, in one format or in PARTS. */
__attribute__((visibility("hidden"))) void linear_dequant_range(const scalar_t *x, const LinearWeights *w, scalar_t *y,
                                                                int64_t rows, Range range, scalar_t *scratch);
#endif

#endif
