/* The weights of a linear map, in one of the formats that the products read. */
#ifndef ORTHRUS_LINEAR_WEIGHTS_H
#define ORTHRUS_LINEAR_WEIGHTS_H

#include <stdint.h>

#include "simd.h"

/* How weights are stored and multiplied:
 * PLAIN  scalars, by scalars (gemm.h);
 * INT8   int8 with a scale per output, by int8 activations (gemm_int8.h);
 * Q4, Q8 group-quantised to four or eight bits, expanded to bf16 where they are used (gemm_dequant.h);
 * W4A8   group-quantised to four bits, by int8 activations (gemm_w4a8.h). */
enum { FORMAT_PLAIN, FORMAT_INT8, FORMAT_Q4, FORMAT_Q8, FORMAT_W4A8 };

/* y [rows, outputs] = x [rows, inputs] w^T + bias. `bias` is null where there is none; `scales` and `shifts` (128 times the
 * sum of an output's weights) belong to INT8. */
typedef struct {
    const void *weight;
    const scalar_t *bias;
    const float *scales;
    const int32_t *shifts;
    int64_t inputs, outputs, format;
} LinearWeights;

static inline const scalar_t *bias_at(const LinearWeights *w, int64_t output) { return w->bias ? w->bias + output : 0; }

#ifdef HAVE_AVX512
/* The epilogue of a product: sixteen sums, plus the bias where there is one, to y. */
static inline void store_outputs(__m512 sums, const scalar_t *bias, scalar_t *y) {
    store_lanes(y, bias ? _mm512_add_ps(sums, load_lanes(bias)) : sums);
}
#endif

#endif
