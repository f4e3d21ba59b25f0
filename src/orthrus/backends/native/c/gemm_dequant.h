/* Products of group-quantised weights with bf16 activations: each weight is expanded to the bf16 value that it stands for
 * where it is used. Memory moves a third of the bytes, and the bits are those of gemm.h on weights expanded in advance.
 *
 * For tiles, the groups of a panel of 32 outputs lie two by two: [outputs / 32][inputs / 32][2]. A group's codes are in order
 * of outputs, and at four bits a word holds one input of four outputs. Without tiles, groups are [outputs / 16][inputs / 32].
 * Codes are in the order of the weights of gemm_bf16.h, and at four bits a word holds the inputs i, i + 8, i + 16, i + 24 of
 * an output. */
#ifndef ORTHRUS_GEMM_DEQUANT_H
#define ORTHRUS_GEMM_DEQUANT_H

#include <stdint.h>

#include "dispatch.h"
#include "float_state.h"
#include "gemm.h"
#include "gemm_dequant_amx.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"
#include "threads.h"

#if defined(HAVE_BF16_DOT) && defined(HAVE_AVX512)

int has_linear_dequant(void) { return GROUP; }

/* The weights of four outputs, 4 apart, by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. */
ALWAYS_INLINE void dequantize_quad(const int64_t format, const char *group, const GroupScales *by, int q, __m512bh *w) {
    if (format == FORMAT_Q4) {
        const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i code_mask = _mm512_set1_epi16(15);
        const int64_t one = 0x10001000100010; /* four words of 16 */
        const __m512i output = _mm512_set_epi64(3 * one, 3 * one, 2 * one, 2 * one, one, one, 0, 0);
        __m512 values[4];
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++)
            values[l] = _mm512_fmadd_ps(codes, broadcast(by->scale + 4 * l + q), broadcast(by->min + 4 * l + q));
        __m512i low = (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]);
        __m512i high = (__m512i)_mm512_cvtne2ps_pbh(values[3], values[2]);
        __m512i packed = _mm512_loadu_si512(group + 64 * q);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512i index = _mm512_ternarylogic_epi32(c ? _mm512_srli_epi16(packed, 4 * c) : packed, code_mask, output, 0xEA);
            w[c] = (__m512bh)_mm512_permutex2var_epi16(low, index, high);
        }
    } else {
        __m512 all = _mm512_loadu_ps(by->scale);
        __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
        __m512 low = _mm512_permutexvar_ps(_mm512_add_epi32(half, _mm512_set1_epi32(q)), all);
        __m512 high = _mm512_permutexvar_ps(_mm512_add_epi32(half, _mm512_set1_epi32(q + 8)), all);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const __m128i *codes = (const __m128i *)(group + 32 * (4 * c + q));
            __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes)));
            __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes + 1)));
            w[c] = _mm512_cvtne2ps_pbh(_mm512_mul_ps(b, high), _mm512_mul_ps(a, low));
        }
    }
}

/* A panel of 16 outputs, expanded to the order of gemm_bf16.h. */
ALWAYS_INLINE void dequantize_panel(const int64_t format, const char *w, int64_t depth, scalar_t *expanded) {
    for (int64_t k = 0; k < depth; k += GROUP, w += group_bytes(format)) {
        GroupScales scales;
        load_group_scales(format, w, &scales);
        prefetch_group(w, group_bytes(format));
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512bh weights[4];
            dequantize_quad(format, w, &scales, q, weights);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                _mm512_storeu_si512(expanded + (k + DOT_INPUTS * c) * LANES + 4 * DOT_INPUTS * q, (__m512i)weights[c]);
        }
    }
}

/* `rows` rows by one panel of 16 outputs, expanded in registers. `repeated` has every eight inputs of a row four times. */
ALWAYS_INLINE void gemm_dequant_rows(const int rows, const int64_t format, const scalar_t *repeated, const char *w,
                                     const scalar_t *bias, scalar_t *y, int64_t depth, int64_t outputs) {
    __m512 sums[GEMM_MAX_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[r][q] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += GROUP, w += group_bytes(format)) {
        GroupScales scales;
        load_group_scales(format, w, &scales);
        prefetch_group(w, group_bytes(format));
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512bh weights[4];
            dequantize_quad(format, w, &scales, q, weights);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) {
                    __m512i inputs = _mm512_loadu_si512(repeated + 4 * (r * depth + k + DOT_INPUTS * c));
                    sums[r][q] = _mm512_dpbf16_ps(sums[r][q], (__m512bh)inputs, weights[c]);
                }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) store_partial_sums(sums[r], bias, y + r * outputs);
}

/* All rows by 16 outputs from `output` on. Every weight is expanded once: for few rows, which are in `scratch` repeated, in
 * registers; else into `scratch`. */
ALWAYS_INLINE void gemm_dequant_panel(const int64_t format, const scalar_t *x, const LinearWeights *w, int64_t output,
                                      scalar_t *y, int64_t rows, scalar_t *scratch) {
    int64_t depth = w->inputs, outputs = w->outputs, bytes = group_bytes(format);
    const char *panel = (const char *)w->weight + output / LANES * (depth / GROUP) * bytes;
    const scalar_t *bias = bias_at(w, output);
    y += output;
    if (rows > GEMM_MAX_ROWS) {
        Prefetch next_panel = {panel + depth / GROUP * bytes, bytes * DOT_INPUTS / GROUP};
        dequantize_panel(format, panel, depth, scratch);
        gemm_panel(x, scratch, next_panel, bias, y, rows, depth, outputs);
        return;
    }
    DISPATCH_ROWS_6(rows, gemm_dequant_rows, format, scratch, panel, bias, y, depth, outputs)
}

/* Scalars of scratch memory that a thread needs: an expanded panel of 32 outputs and four tiles. */
static inline int64_t dequant_scratch_scalars(int64_t depth) { return 2 * LANES * depth + 4 * GROUP_WEIGHTS; }

/* The outputs in `range` of y = x w^T + bias. */
static void gemm_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                         scalar_t *scratch) {
#ifdef HAVE_AMX
    if (use_amx) {
        gemm_dequant_amx(x, w, y, rows, range, scratch);
        return;
    }
#endif
    if (rows <= GEMM_MAX_ROWS) /* repeated once for all outputs: broadcasting takes a shuffle on Zen 4 */
        for (int64_t i = 0; i < rows * w->inputs; i += DOT_INPUTS)
            _mm512_storeu_si512(scratch + 4 * i, (__m512i)broadcast_inputs(x + i));
    for (int64_t out = range.begin; out < range.end; out += LANES)
        if (w->format == FORMAT_Q4) gemm_dequant_panel(FORMAT_Q4, x, w, out, y, rows, scratch);
        else gemm_dequant_panel(FORMAT_Q8, x, w, out, y, rows, scratch);
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias; scratch [threads][dequant_scratch_scalars(inputs)]. */
void linear_dequant(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, scalar_t *scratch,
                    int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        SCOPED_FLOAT_STATE caller = set_default_float_state();
        Thread thread = this_thread();
        scalar_t *own = scratch + thread.index * dequant_scratch_scalars(w->inputs);
        gemm_dequant(x, w, y, rows, split_outputs(w->outputs, thread), own);
    }
}
#else
int has_linear_dequant(void) { return 0; }
#endif

#endif
