/* The weights of a linear map, in one of the formats that the products read. */
#ifndef ORTHRUS_LINEAR_WEIGHTS_H
#define ORTHRUS_LINEAR_WEIGHTS_H

#include <stdint.h>

#include "simd.h"

/* How weights are stored and multiplied:
 * PLAIN  scalars, by scalars (gemm.h);
 * INT8   int8 with a scale per output, by int8 activations (gemm_int8.h);
 * Q4, Q8 group-quantised to four or eight bits, expanded to bf16 where they are used (gemm_dequant.h);
 * Q5_0, Q5_1  the same to five bits, without and with minima of the groups;
 * Q4_K, Q5_K, Q6_K  K-quants, expanded as Q4 and Q8 are;
 * PARTS  ranges of outputs, each in PLAIN or one of the formats that are expanded.
 *
 * Of formats other than PLAIN and INT8, BY_INT8 is added where the codes are multiplied by int8 activations (gemm_codes.h). */
enum {
    FORMAT_PLAIN,
    FORMAT_INT8,
    FORMAT_Q4,
    FORMAT_Q5_0,
    FORMAT_Q5_1,
    FORMAT_Q8,
    FORMAT_Q4_K,
    FORMAT_Q5_K,
    FORMAT_Q6_K,
    FORMAT_PARTS,
    BY_INT8 = 64
};

/* A range of outputs of PARTS. The weights of the ranges follow one another. */
typedef struct {
    int64_t outputs, format;
} WeightPart;

/* y [rows, outputs] = x [rows, inputs] w^T + bias. `bias` is null where there is none; `scales` and `shifts` (128 times the
 * sum of an output's weights) belong to INT8, `parts` to PARTS. */
typedef struct {
    const void *weight;
    const scalar_t *bias;
    const float *scales;
    const int32_t *shifts;
    const WeightPart *parts;
    int64_t inputs, outputs, format;
} LinearWeights;

static inline int multiplies_codes(const LinearWeights *w) { return (w->format & BY_INT8) != 0; }

static inline const scalar_t *bias_at(const LinearWeights *w, int64_t output) { return w->bias ? w->bias + output : 0; }

/* The epilogue of a product: sixteen sums, plus the bias where there is one, to y. */
static inline void store_outputs(f32x16 sums, const scalar_t *bias, scalar_t *y) {
    store_lanes(y, bias ? f32_add(sums, load_lanes(bias)) : sums);
}

#endif
