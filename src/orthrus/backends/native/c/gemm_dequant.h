/* Products of group-quantised weights with bf16 activations: each weight is expanded to the bf16 value that it stands for
 * where it is used. Memory moves a third of the bytes, and the bits are those of gemm.h on weights expanded in advance.
 *
 * For tiles, the groups of a panel of 32 outputs lie two by two: [outputs / 32][inputs / 32][2]. A group's codes are in order
 * of outputs; a word holds four bits of one input of four outputs, or the fifth bits of all. Without tiles, groups are
 * [outputs / 16][inputs / 32], with codes as in code_fields.h; K-quants are so, [outputs / 16][inputs / 256], everywhere. */
#ifndef ORTHRUS_GEMM_DEQUANT_H
#define ORTHRUS_GEMM_DEQUANT_H

#include <stdint.h>

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
#include "packed_groups.h"
#include "simd.h"
#include "threads.h"

#ifdef BFLOAT16
/* The most rows beside which weights are expanded in registers; those in quads take fewer of them. */
#if SIMD_REGISTERS == 32
#define DEQUANT_MAX_ROWS 4
#else
#define DEQUANT_MAX_ROWS 2
#endif
#define QUADS_MAX_ROWS 6

/* Rows as products that expand weights read them: in fp32 where there are no dot products of bf16. */
#ifdef HAVE_BF16_DOT
typedef scalar_t dequant_input_t;

#if LANES_IN_PAIRS
/* Adds the products of a group that is expanded in quads. */
ALWAYS_INLINE void add_quads(const int rows, const int64_t format, const char *panel, int64_t group, const scalar_t *x,
                             int64_t depth, f32x16 (*sums)[4]) {
    GroupScales scales;
    const char *codes = load_quads(format, panel, group, &scales);
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        i32x16 weights[4];
        dequantize_quad(codes, &scales, q, weights);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
                sums[r][q] = dot_bf16(sums[r][q], broadcast_inputs(x + r * depth + DOT_INPUTS * c), weights[c]);
    }
}
#endif

/* Adds the products of a group with `rows` rows. */
ALWAYS_INLINE void add_group(const int rows, const int64_t format, const GroupInLanes *in, const dequant_input_t *x,
                             int64_t depth, f32x16 (*sums)[4]) {
#pragma GCC unroll 16
    for (int v = 0; v < PAIRS; v++) {
        i32x16 weights = expand_pair(format, in, v);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            sums[r][v % 4] = dot_bf16(sums[r][v % 4], i32_broadcast(x + r * depth + 2 * v), weights);
    }
}
#else
typedef float dequant_input_t;

ALWAYS_INLINE void add_group(const int rows, const int64_t format, const GroupInLanes *in, const dequant_input_t *x,
                             int64_t depth, f32x16 (*sums)[4]) {
#pragma GCC unroll 16
    for (int v = 0; v < PAIRS; v++) {
        WeightPairs w = expand_pair(format, in, v);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const float *inputs = x + r * depth + 2 * v;
            f32x16 sum = f32_fma(f32_broadcast(inputs), w.even, sums[r][v % 4]);
            sums[r][v % 4] = f32_fma(f32_broadcast(inputs + 1), w.odd, sum);
        }
    }
}
#endif

/* `rows` rows by one panel of 16 outputs, expanded in registers. */
ALWAYS_INLINE void gemm_dequant_rows(const int rows, const int64_t format, const dequant_input_t *x, const char *panel,
                                     const scalar_t *bias, scalar_t *y, int64_t depth, int64_t outputs) {
    f32x16 sums[GEMM_MAX_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) sums[r][p] = f32_zero();
    for (int64_t group = 0; group < depth / GROUP; group++) {
        prefetch_group(panel + group * stored_group_bytes(format), stored_group_bytes(format));
#if LANES_IN_PAIRS
        if (in_quads(format)) {
            add_quads(rows, format, panel, group, x + group * GROUP, depth, sums);
            continue;
        }
#endif
        const GroupInLanes in = load_lanes_of_group(format, panel, group);
        add_group(rows, format, &in, x + group * GROUP, depth, sums);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        if (in_quads(format)) store_partial_sums(sums[r], bias, y + r * outputs);
        else store_sums_of_pairs(sums[r], bias, y + r * outputs);
}

/* Up to DEQUANT_ROWS rows by 16 outputs from `output` on. Every weight is expanded once: for few rows in registers, else into
 * `scratch`, where the rows in fp32 come first if they are read so. */
ALWAYS_INLINE void gemm_dequant_panel(const int64_t format, const scalar_t *x, const LinearWeights *w, int64_t output,
                                      scalar_t *y, int64_t rows, scalar_t *scratch) {
    int64_t depth = w->inputs, outputs = w->outputs, bytes = stored_group_bytes(format);
    const char *panel = (const char *)w->weight + output / LANES * (depth / GROUP) * bytes;
    const scalar_t *bias = bias_at(w, output);
    y += output;
#ifdef HAVE_BF16_DOT
    const dequant_input_t *inputs = x;
#else
    const dequant_input_t *inputs = (const float *)scratch;
    (void)x;
#endif
    if (rows > (in_quads(format) ? QUADS_MAX_ROWS : DEQUANT_MAX_ROWS) || format == FORMAT_PLAIN) {
#ifdef HAVE_BF16_DOT
        Prefetch next_panel = {panel + depth / GROUP * bytes, bytes * DOT_INPUTS / GROUP};
        dequantize_panel(format, panel, depth, scratch);
        if (in_quads(format)) gemm_panel(inputs, scratch, next_panel, bias, y, rows, depth, outputs);
        else gemm_expanded_panel(inputs, scratch, next_panel, bias, y, rows, depth, outputs);
#else
        float *expanded = (float *)scratch + rows * depth;
        expand_panel(format, panel, depth, expanded);
        gemm_expanded_panel(inputs, expanded, bias, y, rows, depth, outputs);
#endif
        return;
    }
#if LANES_IN_PAIRS
    if (in_quads(format)) {
        DISPATCH_ROWS(QUADS_MAX_ROWS, rows, gemm_dequant_rows, format, inputs, panel, bias, y, depth, outputs)
        return;
    }
#endif
    DISPATCH_ROWS(DEQUANT_MAX_ROWS, rows, gemm_dequant_rows, format, inputs, panel, bias, y, depth, outputs)
}

#ifdef HAVE_AMX
/* A panel of 16 outputs of K-quants, expanded to the order of weights for tiles. */
static void dequantize_k_panel(int64_t format, const char *panel, int64_t depth, scalar_t *expanded) {
    if (format == FORMAT_Q4_K) dequantize_panel(FORMAT_Q4_K, panel, depth, expanded);
    else if (format == FORMAT_Q5_K) dequantize_panel(FORMAT_Q5_K, panel, depth, expanded);
    else dequantize_panel(FORMAT_Q6_K, panel, depth, expanded);
    for (int64_t k = 0; k < depth && in_quads(format); k += DOT_INPUTS) quads_to_pairs(expanded + k * LANES);
}

/* K-quants on tiles: 32 outputs at a time are expanded to the weights of gemm_bf16.h. */
static void gemm_dequant_k_amx(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                               scalar_t *scratch) {
    int64_t depth = w->inputs, bytes = depth / SUPER_BLOCK * super_block_bytes(w->format);
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *panels = (const char *)w->weight + out / LANES * bytes;
        dequantize_k_panel(w->format, panels, depth, scratch);
        dequantize_k_panel(w->format, panels + bytes, depth, scratch + depth * LANES);
        LinearWeights expanded = {.weight = scratch, .bias = bias_at(w, out), .inputs = depth, .outputs = w->outputs};
        gemm(x, &expanded, y + out, rows, (Range){0, 2 * LANES});
    }
}
#endif

/* Rows in the type in which products read them, once for all outputs. */
static void prepare_inputs(const scalar_t *x, int64_t rows, int64_t depth, scalar_t *scratch) {
#ifdef HAVE_BF16_DOT
    (void)x, (void)rows, (void)depth, (void)scratch;
#else
    for (int64_t i = 0; i < rows * depth; i += LANES) f32_store((float *)scratch + i, load_lanes(x + i));
#endif
}

/* The outputs in `range` of y = x w^T + bias, after prepare_inputs. */
static void gemm_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                         scalar_t *scratch) {
#ifdef HAVE_AMX
    if (use_amx) {
        if (is_k_quant(w->format)) gemm_dequant_k_amx(x, w, y, rows, range, scratch);
        else gemm_dequant_amx(x, w, y, rows, range, scratch);
        return;
    }
#endif
    for (int64_t out = range.begin; out < range.end; out += LANES) switch (w->format) {
        case FORMAT_Q4: gemm_dequant_panel(FORMAT_Q4, x, w, out, y, rows, scratch); break;
        case FORMAT_Q5_0: gemm_dequant_panel(FORMAT_Q5_0, x, w, out, y, rows, scratch); break;
        case FORMAT_Q5_1: gemm_dequant_panel(FORMAT_Q5_1, x, w, out, y, rows, scratch); break;
        case FORMAT_Q8: gemm_dequant_panel(FORMAT_Q8, x, w, out, y, rows, scratch); break;
        case FORMAT_Q4_K: gemm_dequant_panel(FORMAT_Q4_K, x, w, out, y, rows, scratch); break;
        case FORMAT_Q5_K: gemm_dequant_panel(FORMAT_Q5_K, x, w, out, y, rows, scratch); break;
#ifndef HAVE_BF16_DOT
        case FORMAT_PLAIN: gemm_dequant_panel(FORMAT_PLAIN, x, w, out, y, rows, scratch); break;
#endif
        default: gemm_dequant_panel(FORMAT_Q6_K, x, w, out, y, rows, scratch);
        }
}
#endif

#endif
