/* Linear maps whose weights stay quantised, in one format or in several: a fused map has parts in the formats of its
 * sources. */
#include "linear_dequant.h"

#include <stdint.h>

#include "dispatch.h"
#include "gemm.h"
#include "gemm_dequant.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

#ifdef BFLOAT16

/* Scalars of scratch memory that linear_dequant needs for each thread; 0 where there is no such function. */
int64_t linear_dequant_scratch(int64_t inputs) { return dequant_scratch_scalars(inputs); }

/* The outputs in `range` of a map of PARTS; both are whole panels of 32. */
static void gemm_parts(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                       scalar_t *scratch) {
    const char *weight = w->weight;
    int64_t first = 0;
    for (const WeightPart *part = w->parts; first < w->outputs; first += part->outputs, part++) {
        Range own = intersection(range, (Range){first, first + part->outputs});
        if (own.begin < own.end) {
            LinearWeights alone = {weight, bias_at(w, first), 0, 0, 0, w->inputs, w->outputs, part->format};
            Range outputs = {own.begin - first, own.end - first};
            if (expands_weights(&alone, rows)) gemm_dequant(x, &alone, y + first, rows, outputs, scratch);
            else gemm(x, &alone, y + first, rows, outputs);
        }
        weight += part->outputs / LANES * (w->inputs / GROUP) * stored_group_bytes(part->format);
    }
}

void linear_dequant_range(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                          scalar_t *scratch) {
    for (int64_t taken; rows > 0; rows -= taken, x += taken * w->inputs, y += taken * w->outputs) {
        taken = next_rows(rows, DEQUANT_ROWS);
        prepare_inputs(x, taken, w->inputs, scratch);
        if (w->format == FORMAT_PARTS) gemm_parts(x, w, y, taken, range, scratch);
        else gemm_dequant(x, w, y, taken, range, scratch);
    }
}

typedef struct {
    const scalar_t *x;
    const LinearWeights *w;
    scalar_t *y, *scratch;
    int64_t rows;
} DequantCall;

static void linear_dequant_share(void *argument, Thread thread) {
    const DequantCall *call = argument;
    scalar_t *own = call->scratch + thread.index * dequant_scratch_scalars(call->w->inputs);
    linear_dequant_range(call->x, call->w, call->y, call->rows, split_outputs(call->w->outputs, thread), own);
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; scratch [threads][dequant_scratch_scalars(inputs)]. */
void linear_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, scalar_t *scratch,
                    int64_t threads) {
    parallel(threads, linear_dequant_share, &(DequantCall){x, w, y, scratch, rows});
}
#else
int64_t linear_dequant_scratch(int64_t inputs) { return 0 * inputs; }
#endif
