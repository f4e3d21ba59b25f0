/* The linear maps of a forward pass, whatever the format of their weights, one thread's share at a time. */
#ifndef ORTHRUS_FORWARD_LINEAR_H
#define ORTHRUS_FORWARD_LINEAR_H

#include <stdint.h>

#include "gemm.h"
#include "gemm_int8.h"
#include "linear_codes.h"
#include "linear_dequant.h"
#include "linear_weights.h"
#include "quantize.h"
#include "silu_mul.h"
#include "simd.h"
#include "threads.h"


static inline int reads_int8(const LinearWeights *w) { return w->format == FORMAT_INT8 || multiplies_codes(w); }

/* The rows from `row` on in int8, as the map reads them. */
static inline QuantizedRows quantized_from(const LinearWeights *w, QuantizedRows x, int64_t row) {
    return multiplies_codes(w) ? grouped_rows_from(x, row, w->inputs) : rows_from(x, row, w->inputs);
}

/* Scalars of scratch memory that a thread needs for the products of a depth. */
static inline int64_t linear_scratch_scalars(int64_t depth) {
#ifdef BFLOAT16
    return dequant_scratch_scalars(depth);
#else
    return 0 * depth;
#endif
}

/* Quantises the rows in `range` of x [.., inputs], where the map reads int8. */
static void quantize_for(const LinearWeights *w, const scalar_t *x, QuantizedRows quantized, Range range) {
    if (!reads_int8(w) || range.end <= range.begin) return;
    int64_t rows = range.end - range.begin;
    QuantizedRows to = quantized_from(w, quantized, range.begin);
    if (w->format == FORMAT_INT8) quantize_rows_int8(x + range.begin * w->inputs, to, rows, w->inputs);
    else quantize_rows_groups(x + range.begin * w->inputs, to, rows, w->inputs);
}

/* The outputs in `range` for `rows` rows; `quantized` has the same rows in int8 where the map reads those. */
static void linear_range(const LinearWeights *w, const scalar_t *x, QuantizedRows quantized, scalar_t *y, int64_t rows,
                         Range range, char *scratch) {
    (void)scratch;
    if (w->format == FORMAT_INT8) gemm_int8(quantized, w, y, rows, range);
    else if (multiplies_codes(w)) linear_codes_range(quantized, w, y, rows, range);
#ifdef BFLOAT16
    else if (expands_weights(w, rows)) linear_dequant_range(x, w, y, rows, range, (scalar_t *)scratch);
#endif
    else gemm(x, w, y, rows, range);
}

/* The activations of an MLP. */
enum { ACTIVATION_SILU, ACTIVATION_GELU_TANH };

/* The thread's share of the gated activations, from its own outputs of both halves of gate_up [rows, 2 size]. */
static void gate_up_share(const LinearWeights *w, const scalar_t *x, QuantizedRows quantized, scalar_t *gate_up,
                          scalar_t *gated, int64_t rows, int64_t activation, char *scratch, Thread thread) {
    int64_t size = w->outputs / 2;
    Range gates = split_outputs(size, thread), ups = {size + gates.begin, size + gates.end};
    linear_range(w, x, quantized, gate_up, rows, gates, scratch);
    linear_range(w, x, quantized, gate_up, rows, ups, scratch);
    for (int64_t n = 0; n < rows; n++) {
        const scalar_t *x = gate_up + 2 * n * size;
        if (activation == ACTIVATION_SILU) silu_mul_row(x, gated + n * size, size, gates);
        else gelu_mul_row(x, gated + n * size, size, gates);
    }
}

#endif
