/* Products of group-quantised weights with bf16 activations: each weight is expanded to the bf16 value that it stands for
 * where it is used. Memory moves a third of the bytes, and the bits are those of gemm.h on weights expanded in advance.
 *
 * For tiles, the groups of a panel of 32 outputs lie two by two: [outputs / 32][inputs / 32][2]. A group's codes are in order
 * of outputs, and a word holds four bits of one input of four outputs. Without tiles, groups are [outputs / 16][inputs / 32].
 * Codes are in the order of the weights of gemm_bf16.h, and a word holds four bits of the inputs i, i + 8, i + 16, i + 24 of
 * an output. The fifth bits of sixteen codes are another word. K-quants are [outputs / 16][inputs / 256] everywhere. */
#ifndef ORTHRUS_GEMM_DEQUANT_H
#define ORTHRUS_GEMM_DEQUANT_H

#include <stdint.h>
#include <string.h>

#include "dequantize.h"
#include "dispatch.h"
#include "gemm.h"
#include "gemm_dequant_amx.h"
#include "gemm_expanded.h"
#include "group_quantized.h"
#include "k_quants.h"
#include "linear_dequant.h"
#include "linear_weights.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"

#ifdef BFLOAT16
/* The most rows beside which weights are expanded in registers. */
#if SIMD_REGISTERS == 32
#define DEQUANT_MAX_ROWS GEMM_MAX_ROWS
#else
#define DEQUANT_MAX_ROWS 2
#endif

/* The inputs of rows in the order and type in which products that expand weights read them, for every vector of weights of
 * eight inputs: the inputs four times, because broadcasting takes a shuffle on Zen 4, or, without dot products of bf16, four
 * even and four odd inputs in fp32. */
#ifdef HAVE_BF16_DOT
enum { REPEATED_SCALARS = 4, REPEATED_ROWS = DEQUANT_MAX_ROWS };

ALWAYS_INLINE void repeat_eight(const scalar_t *x, scalar_t *to) { i32_store(to, broadcast_inputs(x)); }

/* Adds the products of a group with the outputs q, q + 4, q + 8, q + 12. */
ALWAYS_INLINE void add_group(const int rows, const int64_t format, const char *codes, const GroupScales *by, const int q,
                             const scalar_t *repeated, int64_t depth, f32x16 (*sums)[4]) {
    i32x16 weights[4];
    dequantize_quad(format, codes, by, q, weights);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            i32x16 inputs = i32_load(repeated + REPEATED_SCALARS * (r * depth + DOT_INPUTS * c));
            sums[r][q] = dot_bf16(sums[r][q], inputs, weights[c]);
        }
}
#else
enum { REPEATED_SCALARS = 2, REPEATED_ROWS = DEQUANT_ROWS };

ALWAYS_INLINE void repeat_eight(const scalar_t *x, scalar_t *to) {
    float inputs[DOT_INPUTS];
    for (int i = 0; i < DOT_INPUTS; i++) inputs[i / 2 + i % 2 * (DOT_INPUTS / 2)] = to_float(x[i]);
    memcpy(to, inputs, sizeof inputs);
}

ALWAYS_INLINE void add_group(const int rows, const int64_t format, const char *codes, const GroupScales *by, const int q,
                             const scalar_t *repeated, int64_t depth, f32x16 (*sums)[4]) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        WeightPairs w = dequantize_pairs(format, codes, by, q, c);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const float *inputs = (const float *)(repeated + REPEATED_SCALARS * (r * depth + DOT_INPUTS * c));
            sums[r][q] = f32_fma(f32_repeat4(inputs + 4), w.odd, f32_fma(f32_repeat4(inputs), w.even, sums[r][q]));
        }
    }
}
#endif

/* `rows` rows by one panel of 16 outputs, expanded in registers. `repeated`: see above. */
ALWAYS_INLINE void gemm_dequant_rows(const int rows, const int64_t format, const scalar_t *repeated, const char *w,
                                     const scalar_t *bias, scalar_t *y, int64_t depth, int64_t outputs) {
    f32x16 sums[DEQUANT_MAX_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[r][q] = f32_zero();
    for (int64_t k = 0; k < depth; k += GROUP) {
        GroupScales scales;
        const char *codes = load_group(format, w, k, &scales);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            add_group(rows, format, codes, &scales, q, repeated + REPEATED_SCALARS * k, depth, sums);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) store_partial_sums(sums[r], bias, y + r * outputs);
}

/* Up to DEQUANT_ROWS rows by 16 outputs from `output` on. Every weight is expanded once: for few rows in registers, else into
 * `scratch`, where up to REPEATED_ROWS rows come first. */
ALWAYS_INLINE void gemm_dequant_panel(const int64_t format, const scalar_t *x, const LinearWeights *w, int64_t output,
                                      scalar_t *y, int64_t rows, scalar_t *scratch) {
    int64_t depth = w->inputs, outputs = w->outputs, bytes = stored_group_bytes(format);
    const char *panel = (const char *)w->weight + output / LANES * (depth / GROUP) * bytes;
    const scalar_t *bias = bias_at(w, output);
    y += output;
    if (rows > DEQUANT_MAX_ROWS) {
#ifdef HAVE_BF16_DOT
        Prefetch next_panel = {panel + depth / GROUP * bytes, bytes * DOT_INPUTS / GROUP};
        dequantize_panel(format, panel, depth, scratch);
        gemm_panel(x, scratch, next_panel, bias, y, rows, depth, outputs);
#else
        (void)x;
        float *expanded = (float *)(scratch + REPEATED_SCALARS * rows * depth);
        expand_panel(format, panel, depth, expanded);
        gemm_expanded_panel((const float *)scratch, expanded, bias, y, rows, depth, outputs);
#endif
        return;
    }
    DISPATCH_ROWS(DEQUANT_MAX_ROWS, rows, gemm_dequant_rows, format, scratch, panel, bias, y, depth, outputs)
}

#ifdef HAVE_AMX
/* A panel of 16 outputs of K-quants, expanded to the order of weights for tiles. */
static void dequantize_k_panel_for_tiles(int64_t format, const char *panel, int64_t depth, scalar_t *expanded) {
    if (format == FORMAT_Q4_K) dequantize_panel(FORMAT_Q4_K, panel, depth, expanded);
    else if (format == FORMAT_Q5_K) dequantize_panel(FORMAT_Q5_K, panel, depth, expanded);
    else dequantize_panel(FORMAT_Q6_K, panel, depth, expanded);
    for (int64_t k = 0; k < depth; k += DOT_INPUTS) quads_to_pairs(expanded + k * LANES);
}

/* K-quants on tiles: 32 outputs at a time are expanded to the weights of gemm_bf16.h. */
static void gemm_dequant_k_amx(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                               scalar_t *scratch) {
    int64_t depth = w->inputs, bytes = depth / SUPER_BLOCK * super_block_bytes(w->format);
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *panels = (const char *)w->weight + out / LANES * bytes;
        dequantize_k_panel_for_tiles(w->format, panels, depth, scratch);
        dequantize_k_panel_for_tiles(w->format, panels + bytes, depth, scratch + depth * LANES);
        LinearWeights expanded = {.weight = scratch, .bias = bias_at(w, out), .inputs = depth, .outputs = w->outputs};
        gemm(x, &expanded, y + out, rows, (Range){0, 2 * LANES});
    }
}
#endif

/* For up to REPEATED_ROWS rows without tiles, once for all outputs. */
static void repeat_inputs(const scalar_t *x, int64_t rows, int64_t depth, scalar_t *scratch) {
    if (use_amx || rows > REPEATED_ROWS) return;
    for (int64_t i = 0; i < rows * depth; i += DOT_INPUTS) repeat_eight(x + i, scratch + REPEATED_SCALARS * i);
}

/* The outputs in `range` of y = x w^T + bias, after repeat_inputs. */
static void gemm_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                         scalar_t *scratch) {
#ifdef HAVE_AMX
    if (use_amx) {
        if (is_k_quant(w->format)) gemm_dequant_k_amx(x, w, y, rows, range, scratch);
        else gemm_dequant_amx(x, w, y, rows, range, scratch);
        return;
    }
#endif
    for (int64_t out = range.begin; out < range.end; out += LANES)
        if (w->format == FORMAT_Q4) gemm_dequant_panel(FORMAT_Q4, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q5_0) gemm_dequant_panel(FORMAT_Q5_0, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q5_1) gemm_dequant_panel(FORMAT_Q5_1, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q8) gemm_dequant_panel(FORMAT_Q8, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q4_K) gemm_dequant_panel(FORMAT_Q4_K, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q5_K) gemm_dequant_panel(FORMAT_Q5_K, x, w, out, y, rows, scratch);
#ifndef HAVE_BF16_DOT
        else if (w->format == FORMAT_PLAIN) gemm_dequant_panel(FORMAT_PLAIN, x, w, out, y, rows, scratch);
#endif
        else gemm_dequant_panel(FORMAT_Q6_K, x, w, out, y, rows, scratch);
}
#endif

#endif
