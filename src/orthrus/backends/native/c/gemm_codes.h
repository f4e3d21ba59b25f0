/* Products of group-quantised weights with int8 activations: the codes of the file are multiplied as integers. Sums of the
 * inputs that share a scale are exact; these sums are added in order, in fp32. */
#ifndef ORTHRUS_GEMM_CODES_H
#define ORTHRUS_GEMM_CODES_H

#include <stdint.h>
#include <string.h>

#include "amx.h"
#include "dispatch.h"
#include "gemm_codes_amx.h"
#include "group_codes.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "threads.h"

/* The most rows whose sums fit in registers: those of a group and those of all. */
#if SIMD_REGISTERS == 32
#define CODES_MAX_ROWS 8
#else
#define CODES_MAX_ROWS 4
#endif
/* The most rows that run on vectors where there are tiles: the sums are exact, so both give the same bits. */
enum { CODES_VECTOR_ROWS = 4 };

#ifdef HAVE_I8MM
/* Adds the products of the inputs from 8 `first` on to before 8 `last` of a group, which begins at input `k`. */
ALWAYS_INLINE void multiply_codes(const int rows, const int64_t format, QuantizedRows x, int64_t k, int64_t depth,
                                  const char *codes, const int first, const int last, i32x16 *part) {
    i32x16 sums[CODES_MAX_ROWS / 2][2];
#pragma GCC unroll 4
    for (int p = 0; p < (rows + 1) / 2; p++) sums[p][0] = sums[p][1] = i32_zero();
#pragma GCC unroll 4
    for (int t = first; t < last; t++) {
        __asm__ volatile("" ::: "memory"); /* otherwise gcc unpacks all codes first, and spills sums */
        CodePair weights = unpack_codes(format, codes, t);
#pragma GCC unroll 4
        for (int p = 0; p < (rows + 1) / 2; p++) {
            i32x16 pair = codes_of_pair(rows, 2 * p, x, k + 8 * t, depth);
            sums[p][0] = mmla_i8(sums[p][0], pair, weights.first);
            sums[p][1] = mmla_i8(sums[p][1], pair, weights.second);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) part[r] = i32_add(part[r], mmla_row(r % 2, sums[r / 2][0], sums[r / 2][1]));
}
#else
/* Adds the products of a pair of vectors with eight codes of a row. */
ALWAYS_INLINE i32x16 dot_codes(const int bits, i32x16 part, CodePair weights, const uint8_t *x) {
    i32x16 first = i32_broadcast(x), second = i32_broadcast(x + 4);
    if (bits == 8) return dot_i8(dot_i8(part, weights.first, first), weights.second, second);
    if (bits == 4) return dot_u4(dot_u4(part, weights.first, first), weights.second, second);
    return dot_u6(part, weights.first, first, weights.second, second);
}

ALWAYS_INLINE void multiply_codes(const int rows, const int64_t format, QuantizedRows x, int64_t k, int64_t depth,
                                  const char *codes, const int first, const int last, i32x16 *part) {
    const int bits = code_bits(format);
#pragma GCC unroll 4
    for (int t = first; t < last; t++) {
        if (SIMD_REGISTERS < 32) __asm__ volatile("" ::: "memory"); /* or gcc unpacks all codes first, and spills sums */
        CodePair weights = unpack_codes(format, codes, t);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const uint8_t *codes_of_row = x.codes + r * depth + k + 8 * t;
            part[r] = i32_in_registers(dot_codes(bits, part[r], weights, codes_of_row));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows && bits == 4; r++) part[r] = u4_sums(part[r]);
}
#endif

/* Adds the inputs of a group to `total`. */
ALWAYS_INLINE void add_codes(const int rows, const int64_t format, QuantizedRows x, int64_t group, int64_t depth,
                             const char *panel, f32x16 *total) {
    PanelScales by;
    const char *codes = load_codes(format, panel, group, &by);
    const RowGroup *row = x.groups + group;
    const int parts = format == FORMAT_Q6_K ? 2 : 1;
    int64_t groups = depth / GROUP, k = group * GROUP;
#pragma GCC unroll 2
    for (int p = 0; p < parts; p++) {
        f32x16 scale = parts == 2 && p ? by.other : by.scale;
        i32x16 products[CODES_MAX_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) products[r] = products_of_zero(format, row + r * groups, p);
        multiply_codes(rows, format, x, k, depth, codes, 4 / parts * p, 4 / parts * (p + 1), products);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            total[r] = add_products(format, total[r], products[r], scale, by.other, row + r * groups);
    }
}

/* `rows` rows by 16 outputs. */
ALWAYS_INLINE void gemm_codes_rows(const int rows, const int64_t format, QuantizedRows x, const char *panel, int64_t depth,
                                   const scalar_t *bias, scalar_t *y, int64_t outputs) {
    f32x16 total[CODES_MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) total[r] = f32_zero();
    int64_t bytes = stored_group_bytes(format);
    for (int64_t group = 0; group < depth / GROUP; group++) {
        prefetch_group(panel + group * bytes, bytes);
        add_codes(rows, format, x, group, depth, panel, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) store_outputs(total[r], bias, y + r * outputs);
}

/* All rows by the 16 outputs from `output` on. */
ALWAYS_INLINE void gemm_codes_panel(const int64_t format, QuantizedRows x, const LinearWeights *w, int64_t output,
                                    scalar_t *y, int64_t rows) {
    int64_t depth = w->inputs, outputs = w->outputs;
    const char *panel = (const char *)w->weight + output / LANES * (depth / GROUP) * stored_group_bytes(format);
    for (int64_t r = 0, taken; r < rows; r += taken) {
#ifdef HAVE_I8MM
        taken = next_pairs(rows - r, CODES_MAX_ROWS);
#else
        taken = next_rows(rows - r, CODES_MAX_ROWS);
#endif
        QuantizedRows own = grouped_rows_from(x, r, depth);
        scalar_t *to = y + r * outputs + output;
        DISPATCH_ROWS(CODES_MAX_ROWS, taken, gemm_codes_rows, format, own, panel, depth, bias_at(w, output), to, outputs)
    }
}

/* The outputs in `range` of y = x w^T + bias, of a map in one format. Weights are [outputs / 16][inputs / 32] packed groups, or
 * [outputs / 16][inputs / 256] super-blocks. */
static void gemm_codes(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    const int64_t format = w->format & ~BY_INT8;
#ifdef HAVE_AMX
    if (use_amx && rows > CODES_VECTOR_ROWS) {
        gemm_codes_amx(x, w, y, rows, range);
        return;
    }
#endif
    for (int64_t out = range.begin; out < range.end; out += LANES) switch (format) {
        case FORMAT_Q4: gemm_codes_panel(FORMAT_Q4, x, w, out, y, rows); break;
        case FORMAT_Q5_0: gemm_codes_panel(FORMAT_Q5_0, x, w, out, y, rows); break;
        case FORMAT_Q5_1: gemm_codes_panel(FORMAT_Q5_1, x, w, out, y, rows); break;
        case FORMAT_Q8: gemm_codes_panel(FORMAT_Q8, x, w, out, y, rows); break;
        case FORMAT_Q4_K: gemm_codes_panel(FORMAT_Q4_K, x, w, out, y, rows); break;
        case FORMAT_Q5_K: gemm_codes_panel(FORMAT_Q5_K, x, w, out, y, rows); break;
        default: gemm_codes_panel(FORMAT_Q6_K, x, w, out, y, rows);
        }
}

#endif
