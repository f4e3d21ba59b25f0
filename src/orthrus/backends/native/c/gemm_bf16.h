/* Products in bf16 with fp32 sums: on tiles (AMX), or by dot products of pairs (AVX512-BF16). */
#ifndef ORTHRUS_GEMM_BF16_H
#define ORTHRUS_GEMM_BF16_H

#include <stdint.h>

#include "amx.h"
#include "dispatch.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_BF16_DOT
/* Inputs of an output that lie next to each other in the weights, without tiles; the most rows whose sums fit in registers. */
enum { DOT_INPUTS = 8, GEMM_MAX_ROWS = 6 };

/* What to prefetch during a product: so many bytes per step, from there on. */
typedef struct {
    const char *from;
    int64_t step_bytes;
} Prefetch;

/* sums[q]: four partial sums of each of the outputs q, q + 4, q + 8, q + 12. All sixteen outputs to y. */
ALWAYS_INLINE void store_partial_sums(const __m512 *sums, const scalar_t *bias, scalar_t *y) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    a = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), b = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    store_outputs(_mm512_add_ps(a, b), bias, y);
}

/* Eight inputs of a row, for each of the four outputs in a vector of weights. */
static inline __m512bh broadcast_inputs(const scalar_t *x) {
    return (__m512bh)_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)x));
}

/* `rows` rows by one panel of 16 outputs. */
ALWAYS_INLINE void gemm_rows(const int rows, const scalar_t *x, const scalar_t *w, Prefetch ahead, const scalar_t *bias,
                             scalar_t *y, int64_t depth, int64_t outputs) {
    __m512 sums[GEMM_MAX_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[r][q] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += DOT_INPUTS, w += DOT_INPUTS * LANES, ahead.from += ahead.step_bytes) {
        if (rows > 1) /* the hardware prefetcher keeps up with one row */
            for (int64_t l = 0; l < ahead.step_bytes; l += 64) _mm_prefetch(ahead.from + l, _MM_HINT_T0);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512bh inputs = broadcast_inputs(x + r * depth + k);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                sums[r][q] = _mm512_dpbf16_ps(sums[r][q], inputs, (__m512bh)_mm512_loadu_si512(w + 4 * DOT_INPUTS * q));
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
        DISPATCH_ROWS_6(taken, gemm_rows, x + r * depth, w, ahead, bias, y + r * outputs, depth, outputs)
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
                    __m512 found = _mm512_load_ps(sums[i / TILE_ROWS][p][i % TILE_ROWS]);
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
