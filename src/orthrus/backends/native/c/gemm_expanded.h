/* Products of a panel of weights that was expanded for many rows. The sums are those of gemm_bf16.h, in the same order. */
#ifndef ORTHRUS_GEMM_EXPANDED_H
#define ORTHRUS_GEMM_EXPANDED_H

#include <stdint.h>
#include <string.h>

#include "dequantize.h"
#include "dispatch.h"
#include "gemm_bf16.h"
#include "linear_dequant.h"
#include "pack.h"
#include "simd.h"

#ifdef BFLOAT16
/* sums[p]: of sixteen outputs, the partial sums of the pairs p of every eight inputs. */
static inline void store_sums_of_pairs(const f32x16 *sums, const scalar_t *bias, scalar_t *y) {
    store_outputs(f32_add(f32_add(sums[0], sums[2]), f32_add(sums[1], sums[3])), bias, y);
}

#ifdef HAVE_BF16_DOT
/* The pairs `first` to before `last` of every eight inputs, of `rows` rows by a panel as dequantize_panel leaves it. */
ALWAYS_INLINE void sum_pairs(const int rows, const int first, const int last, const scalar_t *x, const scalar_t *w,
                             Prefetch ahead, int64_t depth, f32x16 (*sums)[4]) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int p = first; p < last; p++) sums[r][p] = f32_zero();
    for (int64_t k = 0; k < depth; k += DOT_INPUTS, w += DOT_INPUTS * LANES, ahead.from += ahead.step_bytes) {
        for (int64_t l = 0; l < ahead.step_bytes; l += 64) prefetch(ahead.from + l);
#pragma GCC unroll 4
        for (int p = first; p < last; p++) {
            i32x16 weights = i32_in_registers(i32_load(w + 2 * LANES * p));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
                sums[r][p] = dot_bf16(sums[r][p], i32_broadcast(x + r * depth + k + 2 * p), weights);
        }
    }
}

ALWAYS_INLINE void gemm_expanded_rows(const int rows, const scalar_t *x, const scalar_t *expanded, Prefetch ahead,
                                      const scalar_t *bias, scalar_t *y, int64_t depth, int64_t outputs) {
    f32x16 sums[GEMM_MAX_ROWS][4];
    if (4 * rows <= GEMM_SUMS) sum_pairs(rows, 0, 4, x, expanded, ahead, depth, sums);
    else {
        sum_pairs(rows, 0, 2, x, expanded, ahead, depth, sums);
        ahead.step_bytes = 0;
        sum_pairs(rows, 2, 4, x, expanded, ahead, depth, sums);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) store_sums_of_pairs(sums[r], bias, y + r * outputs);
}

/* All rows by an expanded panel; only the first group of rows prefetches. */
static void gemm_expanded_panel(const scalar_t *x, const scalar_t *expanded, Prefetch ahead, const scalar_t *bias,
                                scalar_t *y, int64_t rows, int64_t depth, int64_t outputs) {
    for (int64_t r = 0, taken; r < rows; r += taken, ahead.step_bytes = 0) {
        taken = next_rows(rows - r, GEMM_MAX_ROWS);
        DISPATCH_ROWS(GEMM_MAX_ROWS, taken, gemm_expanded_rows, x + r * depth, expanded, ahead, bias, y + r * outputs, depth,
                      outputs)
    }
}
#else
/* The most rows whose sums fit in registers. */
#if SIMD_REGISTERS == 32
#define EXPANDED_MAX_ROWS 12
#else
#define EXPANDED_MAX_ROWS 6
#endif

/* Eight inputs of PLAIN weights, four vectors of four outputs, 4 apart: to four pairs of sixteen outputs. */
static inline void expand_plain(const char *weights, WeightPairs *pairs) {
    uint16_t words[DOT_INPUTS * LANES];
    memcpy(words, weights, sizeof words);
    quads_to_pairs(words);
    for (int p = 0; p < 4; p++) {
        i32x16 pair = i32_load(words + 2 * LANES * p);
        pairs[p] = (WeightPairs){bf16_even(pair), bf16_odd(pair)};
    }
}

/* A panel of 16 outputs to fp32: [4 pairs][inputs / 8][even, odd][16 outputs]. */
ALWAYS_INLINE void expand_panel(const int64_t format, const char *panel, int64_t depth, float *expanded) {
    for (int64_t group = 0; group < depth / GROUP; group++) {
        prefetch_group(panel + group * stored_group_bytes(format), stored_group_bytes(format));
        WeightPairs plain[PAIRS];
        GroupInLanes in = {0};
        if (format != FORMAT_PLAIN) in = load_lanes_of_group(format, panel, group);
        for (int c = 0; c < 4 && format == FORMAT_PLAIN; c++)
            expand_plain(panel + (4 * group + c) * DOT_INPUTS * LANES * (int64_t)sizeof(scalar_t), plain + 4 * c);
#pragma GCC unroll 16
        for (int v = 0; v < PAIRS; v++) {
            WeightPairs weights = format == FORMAT_PLAIN ? plain[v] : expand_pair(format, &in, v);
            float *to = expanded + 4 * (v % 4 * depth + 8 * (4 * group + v / 4));
            f32_store(to, weights.even);
            f32_store(to + LANES, weights.odd);
        }
    }
}

/* `rows` rows in fp32 by an expanded panel. */
ALWAYS_INLINE void gemm_expanded_rows(const int rows, const float *x, const float *expanded, const scalar_t *bias, scalar_t *y,
                                      int64_t depth, int64_t outputs) {
    f32x16 all[EXPANDED_MAX_ROWS][4];
    for (int p = 0; p < 4; p++) {
        f32x16 sums[EXPANDED_MAX_ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) sums[r] = f32_zero();
        for (int64_t k = 2 * p; k < depth; k += DOT_INPUTS)
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; odd++, expanded += LANES) {
                f32x16 weights = f32_in_registers(f32_load(expanded));
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++)
                    sums[r] = f32_fma(f32_broadcast(x + r * depth + k + odd), weights, sums[r]);
            }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) all[r][p] = sums[r];
    }
    for (int r = 0; r < rows; r++) store_sums_of_pairs(all[r], bias, y + r * outputs);
}

/* All rows by an expanded panel. */
static void gemm_expanded_panel(const float *x, const float *expanded, const scalar_t *bias, scalar_t *y, int64_t rows,
                                int64_t depth, int64_t outputs) {
    for (int64_t r = 0, taken; r < rows; r += taken) {
        taken = next_rows(rows - r, EXPANDED_MAX_ROWS);
        DISPATCH_ROWS(EXPANDED_MAX_ROWS, taken, gemm_expanded_rows, x + r * depth, expanded, bias, y + r * outputs, depth,
                      outputs)
    }
}
#endif
#endif

#endif
