/* Products of int8 weights with a scale per output and int8 activations with a scale per row (W8A8). */
#ifndef ORTHRUS_GEMM_INT8_H
#define ORTHRUS_GEMM_INT8_H

#include <stdint.h>
#include <string.h>

#include "amx.h"
#include "dispatch.h"
#include "float_state.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

/* The most rows, and the panels at a time, whose sums fit in registers. */
#ifdef HAVE_I8MM
#define INT8_MAX_ROWS 6
#elif SIMD_REGISTERS == 32
#define INT8_MAX_ROWS 8
enum { INT8_PANELS = 2 };
#else
#define INT8_MAX_ROWS 4
enum { INT8_PANELS = 1 };
#endif

/* The epilogue: sixteen integer sums of a row for the outputs from `output` on. */
static inline void store_int8_outputs(i32x16 sums, const LinearWeights *w, int64_t output, float row_scale, scalar_t *y) {
    const scalar_t *bias = bias_at(w, output);
    f32x16 values = i32_to_f32(i32_sub(sums, i32_load(w->shifts + output)));
    values = f32_mul(values, f32_mul(f32_load(w->scales + output), f32_set1(row_scale)));
    store_outputs(values, bias, y);
}

#ifdef HAVE_I8MM
/* `rows` rows by one panel of 16 outputs. */
ALWAYS_INLINE void gemm_int8_rows(const int rows, QuantizedRows x, const LinearWeights *w, int64_t output, scalar_t *y) {
    int64_t depth = w->inputs;
    const int8_t *panel = (const int8_t *)w->weight + output * depth;
    i32x16 sums[INT8_MAX_ROWS / 2][2];
#pragma GCC unroll 3
    for (int p = 0; p < (rows + 1) / 2; p++) sums[p][0] = sums[p][1] = i32_zero();
    for (int64_t k = 0; k < depth; k += 8) {
        i32x16 codes[INT8_MAX_ROWS / 2];
#pragma GCC unroll 3
        for (int p = 0; p < (rows + 1) / 2; p++) codes[p] = codes_of_pair(rows, 2 * p, x, k, depth);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, panel += 4 * LANES) {
            if (rows > 1) prefetch_ahead(panel);
            __asm__ volatile("" ::: "memory"); /* otherwise gcc loads both halves first, and spills sums */
            i32x16 outputs = i32_load(panel);
#pragma GCC unroll 3
            for (int p = 0; p < (rows + 1) / 2; p++) sums[p][half] = mmla_i8(sums[p][half], codes[p], outputs);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        i32x16 own = mmla_row(r % 2, sums[r / 2][0], sums[r / 2][1]);
        store_int8_outputs(own, w, output, x.scales[r], y + r * w->outputs + output);
    }
}

/* The outputs in `range`, on vectors. */
static void gemm_int8_vectors(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    for (int64_t out = range.begin; out < range.end; out += LANES)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_pairs(rows - r, INT8_MAX_ROWS);
            DISPATCH_ROWS(INT8_MAX_ROWS, taken, gemm_int8_rows, rows_from(x, r, w->inputs), w, out, y + r * w->outputs)
        }
}
#else
/* `rows` rows by INT8_PANELS panels of 16 outputs, of which the second lies `second` bytes behind, 0 if there is none. */
ALWAYS_INLINE void gemm_int8_rows(const int rows, QuantizedRows x, const LinearWeights *w, int64_t output, int64_t second,
                                  scalar_t *y) {
    int64_t depth = w->inputs, outputs = w->outputs;
    const int8_t *panel = (const int8_t *)w->weight + output * depth;
    i32x16 low[INT8_MAX_ROWS], high[INT8_MAX_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = i32_zero();
    for (int64_t k = 0; k < depth; k += 4, panel += 4 * LANES) {
        if (rows > 1 || INT8_PANELS == 1) prefetch_ahead(panel);
        if (rows > 1 && INT8_PANELS == 2) prefetch_ahead(panel + second);
        i32x16 w_low = i32_load(panel), w_high = INT8_PANELS == 2 ? i32_load(panel + second) : i32_zero();
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            i32x16 codes = i32_broadcast(x.codes + r * depth + k);
            low[r] = i32_in_registers(dot_i8(low[r], codes, w_low));
            if (INT8_PANELS == 2) high[r] = i32_in_registers(dot_i8(high[r], codes, w_high));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        scalar_t *to = y + r * outputs + output;
        store_int8_outputs(low[r], w, output, x.scales[r], to);
        if (second) store_int8_outputs(high[r], w, output + LANES, x.scales[r], to + LANES);
    }
}

/* The outputs in `range`, on vectors. */
static void gemm_int8_vectors(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    int64_t depth = w->inputs;
    for (int64_t out = range.begin; out < range.end; out += INT8_PANELS * LANES) {
        int64_t second = INT8_PANELS == 2 && out + LANES < range.end ? LANES * depth : 0;
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_rows(rows - r, INT8_MAX_ROWS);
            DISPATCH_ROWS(INT8_MAX_ROWS, taken, gemm_int8_rows, rows_from(x, r, depth), w, out, second, y + r * w->outputs)
        }
    }
}
#endif

#ifdef HAVE_AMX
static void gemm_int8_amx(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    int32_t sums[2][2][TILE_ROWS][LANES] __attribute__((aligned(64)));
    int64_t depth = w->inputs, configured = 0;
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *weights = (const char *)w->weight + out * depth;
        int64_t second = out + LANES < range.end ? LANES * depth : 0;
        for (int64_t r = 0; r < rows; r += 2 * TILE_ROWS) {
            int64_t taken = rows - r < 2 * TILE_ROWS ? rows - r : 2 * TILE_ROWS;
            if (configured != taken) configure_row_tiles(configured = taken);
            amx_panels_int8((const char *)x.codes + r * depth, weights, second, taken, depth, sums);
            for (int64_t i = 0; i < taken; i++)
                for (int64_t p = 0; p < (second ? 2 : 1); p++) {
                    i32x16 found = _mm512_load_si512(sums[i / TILE_ROWS][p][i % TILE_ROWS]);
                    int64_t at = out + p * LANES;
                    store_int8_outputs(found, w, at, x.scales[r + i], y + (r + i) * w->outputs + at);
                }
        }
    }
    _tile_release();
}
#endif

/* The outputs in `range` of y = x w^T + bias. See pack_int8 for the order of the weights. */
static void gemm_int8(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
#ifdef HAVE_AMX
    if (use_amx && w->inputs % TILE_ROW_BYTES == 0) {
        gemm_int8_amx(x, w, y, rows, range);
        return;
    }
#endif
    gemm_int8_vectors(x, w, y, rows, range);
}

typedef struct {
    QuantizedRows x;
    const LinearWeights *w;
    scalar_t *y;
    int64_t rows;
} Int8Call;

static void linear_int8_share(void *argument, Thread thread) {
    const Int8Call *call = argument;
    gemm_int8(call->x, call->w, call->y, call->rows, split_outputs(call->w->outputs, thread));
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; `quantized` is room for the codes and scales of x. */
void linear_int8(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, const QuantizedRows *quantized,
                 int64_t threads) {
    SCOPED_FLOAT_STATE state = set_default_float_state();
    quantize_rows_int8(x, *quantized, rows, w->inputs);
    parallel(threads, linear_int8_share, &(Int8Call){*quantized, w, y, rows});
}

#endif
