/* Products of group-quantised weights with bf16 activations: each weight is expanded to the bf16 value that it stands for
 * where it is used. Memory moves a third of the bytes, and the bits are those of gemm.h on weights expanded in advance.
 *
 * For tiles, the groups of a panel of 32 outputs lie two by two: [outputs / 32][inputs / 32][2]. A group's codes are in order
 * of outputs, and at four bits a word holds one input of four outputs. Without tiles, groups are [outputs / 16][inputs / 32].
 * Codes are in the order of the weights of gemm_bf16.h, and at four bits a word holds the inputs i, i + 8, i + 16, i + 24 of
 * an output. K-quants are [outputs / 16][inputs / 256] everywhere. */
#ifndef ORTHRUS_GEMM_DEQUANT_H
#define ORTHRUS_GEMM_DEQUANT_H

#include <stdint.h>

#include "dispatch.h"
#include "gemm.h"
#include "gemm_dequant_amx.h"
#include "group_quantized.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"

#if defined(HAVE_BF16_DOT) && defined(HAVE_AVX512)

/* Bytes of 32 inputs of a panel of 16 outputs, their share of a super-block included. */
static inline int64_t stored_group_bytes(int64_t format) {
    if (format == FORMAT_PLAIN) return GROUP_WEIGHTS * (int64_t)sizeof(scalar_t);
    return is_k_quant(format) ? super_block_bytes(format) / SUPER_BLOCK_GROUPS : group_bytes(format);
}

/* The codes of the inputs `k` to `k` + 31 of a panel of 16 outputs, and their scales and minima. */
ALWAYS_INLINE const char *load_group(const int64_t format, const char *panel, int64_t k, GroupScales *scales) {
    const char *group = panel + k / GROUP * stored_group_bytes(format);
    prefetch_group(group, stored_group_bytes(format));
    if (is_k_quant(format)) {
        int64_t g = k % SUPER_BLOCK / GROUP;
        const char *super_block = panel + k / SUPER_BLOCK * super_block_bytes(format);
        load_k_scales(format, super_block, g, scales);
        group = super_block + K_HEADER_BYTES + g * k_codes_bytes(format);
    } else load_group_scales(format, group, scales);
    return group;
}

/* The weights of four outputs, 4 apart, by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. */
ALWAYS_INLINE void dequantize_quad(const int64_t format, const char *group, const GroupScales *by, int q, __m512bh *w) {
    if (format == FORMAT_Q5_K || format == FORMAT_Q6_K) dequantize_k_quad(format, group, by, q, w);
    else if (format != FORMAT_Q8) { /* at four bits a group has at most sixteen different values per output: look them up */
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
    for (int64_t k = 0; k < depth; k += GROUP) {
        GroupScales scales;
        const char *codes = load_group(format, w, k, &scales);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512bh weights[4];
            dequantize_quad(format, codes, &scales, q, weights);
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
    for (int64_t k = 0; k < depth; k += GROUP) {
        GroupScales scales;
        const char *codes = load_group(format, w, k, &scales);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512bh weights[4];
            dequantize_quad(format, codes, &scales, q, weights);
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
    int64_t depth = w->inputs, outputs = w->outputs, bytes = stored_group_bytes(format);
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

/* For a few rows without tiles: repeats every eight inputs four times, once for all outputs, because broadcasting takes a
 * shuffle on Zen 4. */
static void repeat_inputs(const scalar_t *x, int64_t rows, int64_t depth, scalar_t *scratch) {
    if (use_amx || rows > GEMM_MAX_ROWS) return;
    for (int64_t i = 0; i < rows * depth; i += DOT_INPUTS)
        _mm512_storeu_si512(scratch + 4 * i, (__m512i)broadcast_inputs(x + i));
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
        else if (w->format == FORMAT_Q8) gemm_dequant_panel(FORMAT_Q8, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q4_K) gemm_dequant_panel(FORMAT_Q4_K, x, w, out, y, rows, scratch);
        else if (w->format == FORMAT_Q5_K) gemm_dequant_panel(FORMAT_Q5_K, x, w, out, y, rows, scratch);
        else gemm_dequant_panel(FORMAT_Q6_K, x, w, out, y, rows, scratch);
}
#endif

#endif
