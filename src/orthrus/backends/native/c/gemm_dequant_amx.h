/* Products of group-quantised weights with bf16 activations on tiles: see gemm_dequant.h.
 *
 * Expanding is cheapest with one output per row of a tile, so weights are the left operand and the sums come out transposed:
 * tiles 0-3 hold two panels of outputs by two groups of rows. */
#ifndef ORTHRUS_GEMM_DEQUANT_AMX_H
#define ORTHRUS_GEMM_DEQUANT_AMX_H

#include <stdint.h>

#include "amx.h"
#include "gemm.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "pack.h"
#include "simd.h"
#include "threads.h"

#if defined(HAVE_AMX) && defined(BFLOAT16)
enum { TRANSPOSED_MAX_ROWS = 128 };

/* 32 inputs of an output have at most sixteen different values: they are computed, then looked up. */
static inline void dequantize_q4_tile(const char *group, const GroupScales *by, scalar_t *tile) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i code_mask = _mm512_set1_epi16(0x0f0f), second = _mm512_set1_epi16(0x1010);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i packed = _mm512_loadu_si512(group + 64 * j), even = _mm512_and_si512(packed, code_mask);
        __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(packed, 4), code_mask, second, 0xEA);
#pragma GCC unroll 2
        for (int o = 4 * j; o < 4 * j + 4; o += 2) {
            __m512 low = _mm512_fmadd_ps(codes, _mm512_set1_ps(by->scale[o]), _mm512_set1_ps(by->min[o]));
            __m512 high = _mm512_fmadd_ps(codes, _mm512_set1_ps(by->scale[o + 1]), _mm512_set1_ps(by->min[o + 1]));
            __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(tile + GROUP * o, _mm512_permutexvar_epi16(even, values));
            _mm512_storeu_si512(tile + GROUP * (o + 1), _mm512_permutexvar_epi16(odd, values));
            even = _mm512_srli_epi16(even, 8), odd = _mm512_srli_epi16(odd, 8);
        }
    }
}

/* At five bits, to 32 different values. */
static inline void dequantize_q5_tile(const char *group, const GroupScales *by, scalar_t *tile) {
    const __m512 low_codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 high_codes = _mm512_add_ps(low_codes, _mm512_set1_ps(LANES));
    const __m512i low_bits = _mm512_set1_epi16(15), fifth = _mm512_loadu_si512(group + GROUP_WEIGHTS / 2);
#pragma GCC unroll 16
    for (int o = 0; o < LANES; o++) {
        __m512i four = _mm512_srli_epi16(_mm512_loadu_si512(group + 64 * (o / 4)), 4 * (o % 4));
        __m512i above = o < 4 ? _mm512_slli_epi16(fifth, 4 - o) : _mm512_srli_epi16(fifth, o - 4);
        __m512i index = _mm512_ternarylogic_epi32(low_bits, four, above, 0xCA); /* its upper bits do not matter */
        __m512 scale = _mm512_set1_ps(by->scale[o]), min = _mm512_set1_ps(by->min[o]);
        __m512 low = _mm512_fmadd_ps(low_codes, scale, min), high = _mm512_fmadd_ps(high_codes, scale, min);
        __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_storeu_si512(tile + GROUP * o, _mm512_permutexvar_epi16(index, values));
    }
}

static inline __m512 scale_codes(const char *codes, float scale) {
    __m512i words = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(words), _mm512_set1_ps(scale));
}

static inline void dequantize_q8_tile(const char *group, const GroupScales *by, scalar_t *tile) {
#pragma GCC unroll 16
    for (int o = 0; o < LANES; o++) {
        const char *codes = group + GROUP * o;
        __m512bh values = _mm512_cvtne2ps_pbh(scale_codes(codes + LANES, by->scale[o]), scale_codes(codes, by->scale[o]));
        _mm512_storeu_si512(tile + GROUP * o, (__m512i)values);
    }
}

/* A packed group to a tile of 16 outputs by 32 inputs. */
static inline void dequantize_tile(int64_t format, const char *group, const GroupScales *by, scalar_t *tile) {
    prefetch_group(group, group_bytes(format));
    if (format == FORMAT_Q4) dequantize_q4_tile(group, by, tile);
    else if (has_five_bits(format)) dequantize_q5_tile(group, by, tile);
    else dequantize_q8_tile(group, by, tile);
}

/* Tiles of outputs by rows: of the first 16 rows and of the others, which are columns here. */
static void configure_transposed_tiles(int64_t rows) {
    int64_t others = rows > TILE_ROWS ? rows - TILE_ROWS : 1; /* the shape of a tile that is not used must be valid too */
    TileShape first = {TILE_ROWS, 4 * (rows < TILE_ROWS ? rows : TILE_ROWS)}, second = {TILE_ROWS, 4 * others};
    TileShape weights = {TILE_ROWS, TILE_ROW_BYTES};
    configure_tiles((TileShape[8]){first, second, first, second, first, second, weights, weights});
}

/* sums [2 panels][2][16 outputs][16 rows] of 32 outputs; x [rows / 16][depth / 2][16 rows][2], or one row as it is. The next
 * tile is expanded while the one before it is multiplied. */
ALWAYS_INLINE void transposed_panels(const int64_t format, const char *x, const char *w, int64_t rows, int64_t groups,
                                     scalar_t *tiles, char *sums) {
    int64_t tall = rows > TILE_ROWS, bytes = group_bytes(format), step = rows == 1 ? 4 : TILE_ROW_BYTES;
    GroupScales scales[4]; /* of two steps, stored one step ahead: a load right after the store would wait for it */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < 4 && i < 2 * groups; i++) load_group_scales(format, w + i * bytes, scales + i);
    for (int i = 0; i < 2; i++) dequantize_tile(format, w + i * bytes, scales + i, tiles + i * GROUP_WEIGHTS);
    for (int64_t k = 0; k < groups; k++, w += 2 * bytes, x += TILE_ROWS * step) {
        scalar_t *now = tiles + (k & 1) * 2 * GROUP_WEIGHTS, *after = tiles + (~k & 1) * 2 * GROUP_WEIGHTS;
        GroupScales *old = scales + (k & 1) * 2, *by = scales + (~k & 1) * 2;
        int more = k + 1 < groups;
        if (k + 2 < groups) load_group_scales(format, w + 4 * bytes, old), load_group_scales(format, w + 5 * bytes, old + 1);
        if (more) dequantize_tile(format, w + 2 * bytes, by, after);
        _tile_loadd(4, x, step);
        _tile_loadd(6, now, TILE_ROW_BYTES);
        _tile_dpbf16ps(0, 6, 4);
        if (tall) {
            _tile_loadd(5, x + groups * TILE_BYTES, TILE_ROW_BYTES);
            _tile_dpbf16ps(1, 6, 5);
        }
        if (more) dequantize_tile(format, w + 3 * bytes, by + 1, after + GROUP_WEIGHTS);
        _tile_loadd(7, now + GROUP_WEIGHTS, TILE_ROW_BYTES);
        _tile_dpbf16ps(2, 7, 4);
        if (tall) _tile_dpbf16ps(3, 7, 5);
    }
    _tile_stored(0, sums, TILE_ROW_BYTES);
    _tile_stored(1, sums + TILE_BYTES, TILE_ROW_BYTES);
    _tile_stored(2, sums + 2 * TILE_BYTES, TILE_ROW_BYTES);
    _tile_stored(3, sums + 3 * TILE_BYTES, TILE_ROW_BYTES);
}

/* Rows in pairs of inputs: [rows / 16][depth / 2][16 rows][2]. */
static void pack_rows_transposed(const scalar_t *x, int64_t rows, int64_t depth, int32_t *packed) {
    for (int64_t r = 0; r < rows; r += TILE_ROWS)
        for (int64_t k = 0; k < depth; k += GROUP, packed += TILE_BYTES / 4)
            transpose_16x16((const int32_t *)(x + r * depth + k), depth / 2, rows - r, 16, packed);
}

/* At most 32 rows. scratch: four tiles, then the packed rows. */
static void gemm_dequant_amx_few(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                                 scalar_t *scratch) {
    int64_t outputs = w->outputs, groups = w->inputs / GROUP;
    char sums[4 * TILE_BYTES] __attribute__((aligned(64)));
    float by_row[TILE_ROWS * LANES] __attribute__((aligned(64)));
    const char *packed = (const char *)x;
    if (rows > 1) {
        packed = (const char *)(scratch + 4 * GROUP_WEIGHTS);
        pack_rows_transposed(x, rows, w->inputs, (int32_t *)(scratch + 4 * GROUP_WEIGHTS));
    }
    configure_transposed_tiles(rows);
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *panels = (const char *)w->weight + out / LANES * groups * group_bytes(w->format);
        if (w->format == FORMAT_Q4) transposed_panels(FORMAT_Q4, packed, panels, rows, groups, scratch, sums);
        else if (w->format == FORMAT_Q5_0) transposed_panels(FORMAT_Q5_0, packed, panels, rows, groups, scratch, sums);
        else if (w->format == FORMAT_Q5_1) transposed_panels(FORMAT_Q5_1, packed, panels, rows, groups, scratch, sums);
        else transposed_panels(FORMAT_Q8, packed, panels, rows, groups, scratch, sums);
        for (int64_t p = 0; p < 2; p++)
            for (int64_t r = 0; r < rows; r += TILE_ROWS) {
                const char *tile = sums + (2 * p + r / TILE_ROWS) * TILE_BYTES;
                int64_t at = out + p * LANES;
                transpose_16x16((const int32_t *)tile, LANES, TILE_ROWS, LANES, (int32_t *)by_row);
                for (int64_t i = r; i < rows && i < r + TILE_ROWS; i++)
                    store_outputs(_mm512_load_ps(by_row + (i - r) * LANES), bias_at(w, at), y + i * outputs + at);
            }
    }
    _tile_release();
}

/* See gemm_dequant. Up to TRANSPOSED_MAX_ROWS rows, expanding the weights again for every 32 rows is faster than transposing
 * the weights once. */
static void gemm_dequant_amx(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range,
                             scalar_t *scratch) {
    int64_t depth = w->inputs, outputs = w->outputs, bytes = group_bytes(w->format);
    if (rows <= TRANSPOSED_MAX_ROWS) {
        for (int64_t r = 0; r < rows; r += 2 * TILE_ROWS) {
            int64_t taken = rows - r < 2 * TILE_ROWS ? rows - r : 2 * TILE_ROWS;
            gemm_dequant_amx_few(x + r * depth, w, y + r * outputs, taken, range, scratch);
        }
        return;
    }
    scalar_t tile[GROUP_WEIGHTS];
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES) {
        const char *from = (const char *)w->weight + out / LANES * (depth / GROUP) * bytes;
        for (int64_t k = 0; k < depth; k += GROUP)
            for (int64_t p = 0; p < 2; p++, from += bytes) {
                GroupScales scales;
                load_group_scales(w->format, from, &scales);
                dequantize_tile(w->format, from, &scales, tile);
                transpose_16x16((const int32_t *)tile, LANES, LANES, LANES, (int32_t *)(scratch + (p * depth + k) * LANES));
            }
        LinearWeights expanded = {.weight = scratch, .bias = bias_at(w, out), .inputs = depth, .outputs = outputs};
        gemm(x, &expanded, y + out, rows, (Range){0, 2 * LANES});
    }
}
#endif

#endif
