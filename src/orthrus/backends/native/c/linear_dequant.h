/* Linear maps whose weights stay quantised. They take as long to compile as all other kernels together, so they are a
 * translation unit of their own (linear_dequant.c), which is compiled beside the other (native.c). */
#ifndef ORTHRUS_LINEAR_DEQUANT_H
#define ORTHRUS_LINEAR_DEQUANT_H

#include <stdint.h>

#include "gemm.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifdef BFLOAT16

/* Scalars of scratch memory that a thread needs: an expanded panel of 32 outputs and four tiles. */
static inline int64_t dequant_scratch_scalars(int64_t depth) { return 2 * LANES * depth + 4 * GROUP_WEIGHTS; }

/* The outputs in `range` of a map whose weights stay quantised, in one format or in PARTS. */
__attribute__((visibility("hidden"))) void linear_dequant_range(const scalar_t *x, const LinearWeights *w, scalar_t *y,
                                                                int64_t rows, Range range, scalar_t *scratch);
#endif

#endif
