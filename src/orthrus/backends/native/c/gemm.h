/* Products of activations and weights of one scalar type.
 *
 * Every row is summed in fp32 in one fixed order over the depth, whatever the number of rows, so nothing has to be padded. */
#ifndef ORTHRUS_GEMM_H
#define ORTHRUS_GEMM_H

#include <stdint.h>

#include "float_state.h"
#include "gemm_bf16.h"
#include "gemm_f32.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#if defined(HAVE_BF16_DOT) || (!defined(BFLOAT16) && defined(__AVX512F__))
#define HAVE_GEMM

/* y [rows, outputs] = x [rows, inputs] w^T + bias */
void linear(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        SCOPED_FLOAT_STATE caller = set_default_float_state();
        gemm(x, w, y, rows, split_outputs(w->outputs, this_thread()));
    }
}
#else
int64_t k_interleave(int64_t depth) { return 0 * depth; }
#endif

#endif
