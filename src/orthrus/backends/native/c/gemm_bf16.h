/* Products in bf16 with fp32 sums: on tiles (AMX), or by dot products of pairs (AVX512-BF16, NEON, or fp32). */
#ifndef ORTHRUS_GEMM_BF16_H
#define ORTHRUS_GEMM_BF16_H

#include <stdint.h>

#include "amx.h"
#include "dispatch.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifdef BFLOAT16
/* Inputs of an output that lie next to each other in the weights, without tiles. */
enum { DOT_INPUTS = 8 };
/* The most rows, and vectors of sums, that fit in registers. */
#if SIMD_REGISTERS == 32
#define GEMM_MAX_ROWS 6
enum { GEMM_SUMS = 24 };
#else
#define GEMM_MAX_ROWS 3
enum { GEMM_SUMS = 6 };
#endif

/* What to prefetch during a product: so many bytes per step, from there on. */
typedef struct {
    const char *from;
    int64_t step_bytes;
} Prefetch;

/* sums[q]: four partial sums of each of the outputs q, q + 4, q + 8, q + 12. All sixteen outputs to y. */
static inline void store_partial_sums(const f32x16 *sums, const scalar_t *bias, scalar_t *y) {
    store_outputs(f32_reduce_quarters(sums), bias, y);
}

/* Eight inputs of a row, for each of the four outputs in a vector of weights. */
static inline i32x16 broadcast_inputs(const scalar_t *x) { return i32_repeat4(x); }

/* `rows` rows by `quads` vectors of weights in every DOT_INPUTS inputs, the outputs of one panel or of half of one. */
ALWAYS_INLINE void sum_quads(const int rows, const int quads, const scalar_t *x, const scalar_t *w, Prefetch ahead,
                             int64_t depth, f32x16 (*sums)[4]) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < quads; q++) sums[r][q] = f32_zero();
    for (int64_t k = 0; k < depth; k += DOT_INPUTS, w += DOT_INPUTS * LANES, ahead.from += ahead.step_bytes) {
        if (rows > 1) /* the hardware prefetcher keeps up with one row */
            for (int64_t l = 0; l < ahead.step_bytes; l += 64) prefetch(ahead.from + l);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            i32x16 inputs = broadcast_inputs(x + r * depth + k);
#pragma GCC unroll 4
            for (int q = 0; q < quads; q++)
                sums[r][q] = dot_bf16(sums[r][q], inputs, i32_load(w + 4 * DOT_INPUTS * q));
        }
    }
}

/* `rows` rows by one panel of 16 outputs. */
ALWAYS_INLINE void gemm_rows(const int rows, const scalar_t *x, const scalar_t *w, Prefetch ahead, const scalar_t *bias,
                             scalar_t *y, int64_t depth, int64_t outputs) {
    f32x16 sums[GEMM_MAX_ROWS][4];
    if (4 * rows <= GEMM_SUMS) sum_quads(rows, 4, x, w, ahead, depth, sums);
    else {
        f32x16 half[GEMM_MAX_ROWS][4];
        for (int first = 0; first < 4; first += 2, ahead.step_bytes = 0) {
            sum_quads(rows, 2, x, w + 4 * DOT_INPUTS * first, ahead, depth, half);
            for (int r = 0; r < rows; r++) sums[r][first] = half[r][0], sums[r][first + 1] = half[r][1];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) store_partial_sums(sums[r], bias, y + r * outputs);
}

/* All rows by one panel of 16 outputs; only the first group of rows prefetches. */
static void gemm_panel(const scalar_t *x, const scalar_t *w, Prefetch ahead, const scalar_t *bias, scalar_t *y, int64_t rows,
                       int64_t depth, int64_t outputs) {
    for (int64_t r = 0, taken; r < rows; r += taken, ahead.step_bytes = 0) {
        taken = next_rows(rows - r, GEMM_MAX_ROWS);
        DISPATCH_ROWS(GEMM_MAX_ROWS, taken, gemm_rows, x + r * depth, w, ahead, bias, y + r * outputs, depth, outputs)
    }
}

#ifdef HAVE_AMX
static void gemm_amx(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    float sums[2][2][TILE_ROWS][LANES] __attribute__((aligned(64)));
    int64_t depth = w->inputs, configured = 0;
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *weights = (const char *)((const scalar_t *)w->weight + out * depth);
        int64_t second = out + LANES < range.end ? LANES * depth * (int64_t)sizeof(scalar_t) : 0;
        for (int64_t r = 0; r < rows; r += 2 * TILE_ROWS) {
            int64_t taken = rows - r < 2 * TILE_ROWS ? rows - r : 2 * TILE_ROWS;
            if (configured != taken) configure_row_tiles(configured = taken);
            amx_panels_bf16((const char *)(x + r * depth), weights, second, taken, depth * (int64_t)sizeof(scalar_t), sums);
            for (int64_t i = 0; i < taken; i++)
                for (int64_t p = 0; p < (second ? 2 : 1); p++) {
                    f32x16 found = _mm512_load_ps(sums[i / TILE_ROWS][p][i % TILE_ROWS]);
                    store_outputs(found, bias_at(w, out + p * LANES), y + (r + i) * w->outputs + out + p * LANES);
                }
        }
    }
    _tile_release();
}
#endif

/* How many inputs of an output lie next to each other in the packed weights; 0 where there is no product for the depth. */
static inline int64_t interleave_of(int64_t depth) {
    return use_amx && depth % 32 == 0 ? 2 : depth % DOT_INPUTS ? 0 : DOT_INPUTS;
}

/* The outputs in `range` of y = x w^T + bias. Weights are packed [outputs / 16][inputs / 2][16 outputs][2] for tiles, else
 * [outputs / 16][inputs / 8][4][4 outputs, 4 apart][8]. */
static void gemm(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    int64_t depth = w->inputs, outputs = w->outputs;
#ifdef HAVE_AMX
    if (interleave_of(depth) == 2) {
        gemm_amx(x, w, y, rows, range);
        return;
    }
#endif
    int64_t step_bytes = DOT_INPUTS * LANES * (int64_t)sizeof(scalar_t);
    for (int64_t out = range.begin; out < range.end; out += LANES) {
        const scalar_t *panel = (const scalar_t *)w->weight + out * depth;
        Prefetch ahead = {(const char *)panel + PREFETCH_BYTES, step_bytes};
        gemm_panel(x, panel, ahead, bias_at(w, out), y + out, rows, depth, outputs);
    }
}
#endif

#endif
