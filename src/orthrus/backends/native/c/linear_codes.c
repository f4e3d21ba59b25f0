/* Linear maps whose codes are multiplied by int8 activations, in one format or in several: a fused map has parts in the
 * formats of its sources. */
#include "linear_codes.h"

#include <stdint.h>

#include "float_state.h"
#include "gemm_codes.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

void linear_codes_range(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    if (w->format != (FORMAT_PARTS | BY_INT8)) {
        gemm_codes(x, w, y, rows, range);
        return;
    }
    LinearWeights alone = *w;
    int64_t first = 0;
    for (const WeightPart *part = w->parts; first < w->outputs; first += part->outputs, part++) {
        Range own = intersection(range, (Range){first, first + part->outputs});
        alone.format = part->format, alone.bias = bias_at(w, first);
        if (own.begin < own.end) gemm_codes(x, &alone, y + first, rows, (Range){own.begin - first, own.end - first});
        int64_t groups = part->outputs / LANES * (w->inputs / GROUP);
        alone.weight = (const char *)alone.weight + groups * stored_group_bytes(part->format & ~BY_INT8);
    }
}

/* How many inputs of an output lie next to each other in the codes: see group_codes.h. */
#ifdef HAVE_I8MM
int64_t codes_interleave(void) { return 8; }
#else
int64_t codes_interleave(void) { return 4; }
#endif

typedef struct {
    QuantizedRows x;
    const LinearWeights *w;
    scalar_t *y;
    int64_t rows;
} CodesCall;

static void linear_codes_share(void *argument, Thread thread) {
    const CodesCall *call = argument;
    linear_codes_range(call->x, call->w, call->y, call->rows, split_outputs(call->w->outputs, thread));
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; `quantized` is room for the codes, scales and sums of x. */
void linear_codes(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, const QuantizedRows *quantized,
                  int64_t threads) {
    SCOPED_FLOAT_STATE state = set_default_float_state();
    quantize_rows_groups(x, *quantized, rows, w->inputs);
    parallel(threads, linear_codes_share, &(CodesCall){*quantized, w, y, rows});
}
