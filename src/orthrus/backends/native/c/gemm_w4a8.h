/* Products of group-quantised weights of four bits with int8 activations (W4A8): the codes of the file are multiplied as
 * integers. Sums within a group are exact; groups are added in order, in fp32. */
#ifndef ORTHRUS_GEMM_W4A8_H
#define ORTHRUS_GEMM_W4A8_H

#include <stdint.h>
#include <string.h>

#include "amx.h"
#include "dispatch.h"
#include "float_state.h"
#include "gemm_w4a8_amx.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

#ifdef HAVE_VNNI
/* The most rows whose sums fit in registers, and the most that run on vectors where there are tiles: the sums are exact, so
 * both give the same bits. */
enum { W4A8_MAX_ROWS = 6, W4A8_VECTOR_ROWS = 4 };

int has_linear_w4a8(void) { return GROUP; }

/* `rows` rows by 32 outputs from `output` on. */
ALWAYS_INLINE void gemm_w4a8_rows(const int rows, QuantizedRows x, const LinearWeights *w, int64_t output, scalar_t *y) {
    const __m512i code_mask = _mm512_set1_epi8(15);
    int64_t depth = w->inputs, outputs = w->outputs;
    const char *panels = (const char *)w->weight + output * depth / GROUP_WEIGHTS * Q4_BYTES;
    __m512 total[W4A8_MAX_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += GROUP, panels += 2 * Q4_BYTES) {
        __m512i part[W4A8_MAX_ROWS][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) part[r][0] = part[r][1] = _mm512_setzero_si512();
        prefetch_group(panels, 2 * Q4_BYTES);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++)
#pragma GCC unroll 2
            for (int p = 0; p < 2; p++) {
                __m512i packed = _mm512_loadu_si512(panels + p * Q4_BYTES + 64 * t);
                __m512i low = _mm512_and_si512(packed, code_mask);
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), code_mask);
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) {
                    int32_t fours[2];
                    memcpy(fours, x.codes + r * depth + k + 8 * t, 8);
                    part[r][p] = _mm512_dpbusd_epi32(part[r][p], low, _mm512_set1_epi32(fours[0]));
                    part[r][p] = _mm512_dpbusd_epi32(part[r][p], high, _mm512_set1_epi32(fours[1]));
                }
            }
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            __m512 scale = q4_scales(panels + p * Q4_BYTES), min = q4_mins(panels + p * Q4_BYTES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                total[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][p]), scale, total[r][p]);
                total[r][p] = _mm512_fmadd_ps(broadcast(x.sums + (r * depth + k) / GROUP), min, total[r][p]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            int64_t at = output + p * LANES;
            store_outputs(_mm512_mul_ps(total[r][p], _mm512_set1_ps(x.scales[r])), bias_at(w, at), y + r * outputs + at);
        }
}

/* The outputs in `range` of y = x w^T + bias. Weights are packed groups [outputs / 32][inputs / 32][2], in which a byte holds
 * two inputs of an output, 4 apart. */
static void gemm_w4a8(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
#ifdef HAVE_AMX
    if (use_amx && rows > W4A8_VECTOR_ROWS) {
        gemm_w4a8_amx(x, w, y, rows, range);
        return;
    }
#endif
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_rows(rows - r, W4A8_MAX_ROWS);
            DISPATCH_ROWS_6(taken, gemm_w4a8_rows, rows_from(x, r, w->inputs), w, out, y + r * w->outputs)
        }
}

typedef struct {
    QuantizedRows x;
    const LinearWeights *w;
    scalar_t *y;
    int64_t rows;
} W4A8Call;

static void linear_w4a8_share(void *argument, Thread thread) {
    const W4A8Call *call = argument;
    gemm_w4a8(call->x, call->w, call->y, call->rows, split_outputs(call->w->outputs, thread));
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; `quantized` is room for the codes, scales and sums of x. */
void linear_w4a8(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, const QuantizedRows *quantized,
                 int64_t threads) {
    SCOPED_FLOAT_STATE state = set_default_float_state();
    quantize_rows_groups(x, *quantized, rows, w->inputs);
    parallel(threads, linear_w4a8_share, &(W4A8Call){*quantized, w, y, rows});
}
#else
int has_linear_w4a8(void) { return 0; }
#endif

#endif
