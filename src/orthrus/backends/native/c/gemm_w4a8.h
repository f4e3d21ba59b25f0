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

/* The most rows, and the panels at a time, whose sums within a group fit in registers. */
#if SIMD_REGISTERS == 32
#define W4A8_MAX_ROWS 6
enum { W4A8_PANELS = 2 };
#else
#define W4A8_MAX_ROWS 4
enum { W4A8_PANELS = 1 };
#endif
/* The most rows that run on vectors where there are tiles: the sums are exact, so both give the same bits. */
enum { W4A8_VECTOR_ROWS = 4 };

/* The products of the inputs from `k` on with a group of W4A8_PANELS panels. */
#ifdef HAVE_I8MM
ALWAYS_INLINE void multiply_w4a8_group(const int rows, QuantizedRows x, int64_t k, int64_t depth, const char *group,
                                       i32x16 (*part)[W4A8_PANELS]) {
    i32x16 sums[W4A8_MAX_ROWS / 2][2];
#pragma GCC unroll 2
    for (int p = 0; p < (rows + 1) / 2; p++) sums[p][0] = sums[p][1] = i32_zero();
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        __asm__ volatile("" ::: "memory"); /* otherwise gcc unpacks all codes first, and spills sums */
        i32x16 packed = i32_load(group + 64 * t), low = low_nibbles(packed), high = high_nibbles(packed);
#pragma GCC unroll 2
        for (int p = 0; p < (rows + 1) / 2; p++) {
            i32x16 codes = codes_of_pair(rows, 2 * p, x, k + 8 * t, depth);
            sums[p][0] = mmla_i8(sums[p][0], codes, low);
            sums[p][1] = mmla_i8(sums[p][1], codes, high);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) part[r][0] = mmla_row(r % 2, sums[r / 2][0], sums[r / 2][1]);
}
#else
ALWAYS_INLINE void multiply_w4a8_group(const int rows, QuantizedRows x, int64_t k, int64_t depth, const char *group,
                                       i32x16 (*part)[W4A8_PANELS]) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < W4A8_PANELS; p++) part[r][p] = i32_zero();
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++)
#pragma GCC unroll 2
        for (int p = 0; p < W4A8_PANELS; p++) {
            if (SIMD_REGISTERS < 32) __asm__ volatile("" ::: "memory"); /* or gcc unpacks all codes first, and spills sums */
            i32x16 packed = i32_load(group + p * Q4_BYTES + 64 * t);
            i32x16 low = low_nibbles(packed), high = high_nibbles(packed);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const uint8_t *codes = x.codes + r * depth + k + 8 * t;
                part[r][p] = i32_in_registers(dot_u4(part[r][p], low, i32_broadcast(codes)));
                part[r][p] = i32_in_registers(dot_u4(part[r][p], high, i32_broadcast(codes + 4)));
            }
        }
}
#endif

/* Adds the inputs from `k` on of a group of W4A8_PANELS panels, from panel `first` on of the two whose sums are in `total`. */
ALWAYS_INLINE void add_w4a8_group(const int rows, QuantizedRows x, int64_t k, int64_t depth, const char *group,
                                  const int first, f32x16 (*total)[2]) {
    i32x16 part[W4A8_MAX_ROWS][W4A8_PANELS];
    multiply_w4a8_group(rows, x, k, depth, group, part);
#pragma GCC unroll 2
    for (int p = 0; p < W4A8_PANELS; p++) {
        f32x16 scale = q4_scales(group + p * Q4_BYTES), min = q4_mins(group + p * Q4_BYTES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            f32x16 *to = &total[r][first + p];
            *to = f32_fma(i32_to_f32(u4_sums(part[r][p])), scale, *to);
            *to = f32_fma(f32_broadcast(x.sums + (r * depth + k) / GROUP), min, *to);
        }
    }
}

/* `rows` rows by 32 outputs from `output` on. */
ALWAYS_INLINE void gemm_w4a8_rows(const int rows, QuantizedRows x, const LinearWeights *w, int64_t output, scalar_t *y) {
    int64_t depth = w->inputs, outputs = w->outputs;
    const char *panels = (const char *)w->weight + output * depth / GROUP_WEIGHTS * Q4_BYTES;
    f32x16 total[W4A8_MAX_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) total[r][0] = total[r][1] = f32_zero();
    for (int64_t k = 0; k < depth; k += GROUP, panels += 2 * Q4_BYTES) {
        prefetch_group(panels, 2 * Q4_BYTES);
#pragma GCC unroll 2
        for (int first = 0; first < 2; first += W4A8_PANELS)
            add_w4a8_group(rows, x, k, depth, panels + first * Q4_BYTES, first, total);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            int64_t at = output + p * LANES;
            store_outputs(f32_mul(total[r][p], f32_set1(x.scales[r])), bias_at(w, at), y + r * outputs + at);
        }
}

/* The outputs in `range` of y = x w^T + bias. Weights are packed groups [outputs / 32][inputs / 32][2]; see pack_w4a8 for the
 * order of their codes. */
static void gemm_w4a8(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
#ifdef HAVE_AMX
    if (use_amx && rows > W4A8_VECTOR_ROWS) {
        gemm_w4a8_amx(x, w, y, rows, range);
        return;
    }
#endif
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES)
        for (int64_t r = 0, taken; r < rows; r += taken) {
#ifdef HAVE_I8MM
            taken = next_pairs(rows - r, W4A8_MAX_ROWS);
#else
            taken = next_rows(rows - r, W4A8_MAX_ROWS);
#endif
            DISPATCH_ROWS(W4A8_MAX_ROWS, taken, gemm_w4a8_rows, rows_from(x, r, w->inputs), w, out, y + r * w->outputs)
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

#endif
