/* Linear maps whose weights stay quantised, in one format or in several: a fused map has parts in the formats of its
 * sources. */
#include "linear_dequant.h"

#include <stdint.h>

#include "float_state.h"
#include "gemm.h"
#include "gemm_dequant.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_LINEAR_DEQUANT

int has_linear_dequant(void) { return GROUP; }

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
            if (part->format == FORMAT_PLAIN) gemm(x, &alone, y + first, rows, outputs);
            else gemm_dequant(x, &alone, y + first, rows, outputs, scratch);
        }
        weight += part->outputs / LANES * (w->inputs / GROUP) * stored_group_bytes(part->format);
    }
}

void linear_dequant_range(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                          scalar_t *scratch) {
    repeat_inputs(x, rows, w->inputs, scratch);
    if (w->format == FORMAT_PARTS) gemm_parts(x, w, y, rows, range, scratch);
    else gemm_dequant(x, w, y, rows, range, scratch);
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; scratch [threads][dequant_scratch_scalars(inputs)]. */
void linear_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, scalar_t *scratch,
                    int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        SCOPED_FLOAT_STATE caller = set_default_float_state();
        Thread thread = this_thread();
        scalar_t *own = scratch + thread.index * dequant_scratch_scalars(w->inputs);
        linear_dequant_range(x, w, y, rows, split_outputs(w->outputs, thread), own);
    }
}
#else
int has_linear_dequant(void) { return 0; }
#endif
