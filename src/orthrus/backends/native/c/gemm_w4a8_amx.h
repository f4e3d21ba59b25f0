/* Products of group-quantised weights of four bits with int8 activations on tiles, for more rows than are cheaper on vectors:
 * the same sums in the same order. See gemm_w4a8.h. */
#ifndef ORTHRUS_GEMM_W4A8_AMX_H
#define ORTHRUS_GEMM_W4A8_AMX_H

#include <stdint.h>

#include "amx.h"
#include "dispatch.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_AMX
/* Groups in flight: while group g is multiplied, g + 2 is unpacked and g - 2 is added, because a load right after the store
 * of what it reads would wait for it. */
enum { STAGES = 4 };

typedef struct {
    uint8_t codes[STAGES][GROUP_WEIGHTS] __attribute__((aligned(64)));
    int32_t sums[STAGES][TILE_ROWS * LANES] __attribute__((aligned(64)));
} Pipeline;

/* What the groups of one panel of 16 outputs read: rows of codes and sums per group, packed groups that lie two apart, and
 * where the weights that come next are. */
typedef struct {
    const uint8_t *codes;
    const float *sums;
    const char *weights, *next;
    int64_t depth, groups;
} PanelOperands;

/* Tiles 0-3 hold sums of one group each. A row of a tile of weights has four inputs of 16 outputs. */
static void configure_group_tiles(int64_t rows) {
    TileShape sums = {rows, TILE_ROW_BYTES}, codes = {rows, GROUP}, weights = {GROUP / 4, TILE_ROW_BYTES};
    configure_tiles((TileShape[8]){sums, sums, sums, sums, codes, codes, weights, weights});
}

/* The codes of a packed group, one per byte. */
static inline void unpack_codes(const char *group, uint8_t *codes) {
    const __m512i code_mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
        __m512i packed = _mm512_loadu_si512(group + 64 * t);
        _mm512_store_si512(codes + 128 * t, _mm512_and_si512(packed, code_mask));
        _mm512_store_si512(codes + 128 * t + 64, _mm512_and_si512(_mm512_srli_epi16(packed, 4), code_mask));
    }
}

#define MULTIPLY_GROUP(sums_tile, codes_tile, weights_tile, x, depth, w)                                               \
    do {                                                                                                               \
        _tile_zero(sums_tile);                                                                                         \
        _tile_loadd(codes_tile, x, depth);                                                                             \
        _tile_loadd(weights_tile, w, TILE_ROW_BYTES);                                                                  \
        _tile_dpbsud(sums_tile, codes_tile, weights_tile);                                                             \
    } while (0)

/* One group, in the tiles of its stage. */
ALWAYS_INLINE void multiply_group(const int stage, const uint8_t *x, int64_t depth, const uint8_t *w) {
    switch (stage) {
    case 0: MULTIPLY_GROUP(0, 4, 6, x, depth, w); break;
    case 1: MULTIPLY_GROUP(1, 5, 7, x, depth, w); break;
    case 2: MULTIPLY_GROUP(2, 4, 6, x, depth, w); break;
    default: MULTIPLY_GROUP(3, 5, 7, x, depth, w);
    }
}

ALWAYS_INLINE void store_group_sums(const int stage, int32_t *sums) {
    switch (stage) {
    case 0: _tile_stored(0, sums, TILE_ROW_BYTES); break;
    case 1: _tile_stored(1, sums, TILE_ROW_BYTES); break;
    case 2: _tile_stored(2, sums, TILE_ROW_BYTES); break;
    default: _tile_stored(3, sums, TILE_ROW_BYTES);
    }
}

/* Adds the sums of a group, scaled, to those of all groups, in fp32; `sums` points at the group's sums of codes. */
ALWAYS_INLINE void add_group_sums(const int rows, const int32_t *products, const float *sums, int64_t groups,
                                  const char *group, __m512 *total) {
    __m512 scale = q4_scales(group), min = q4_mins(group);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products + r * LANES)), scale, total[r]);
        total[r] = _mm512_fmadd_ps(_mm512_set1_ps(sums[r * groups]), min, total[r]);
    }
}

/* Group g is multiplied in `stage` (g modulo STAGES), g + 2 unpacked, g - 2 added. */
ALWAYS_INLINE void pipeline_step(const int rows, const int stage, int64_t g, const PanelOperands *in, Pipeline *pipeline,
                                 __m512 *total) {
    int64_t groups = in->groups;
    if (g < groups) multiply_group(stage, in->codes + g * GROUP, in->depth, pipeline->codes[stage]);
    if (g + 2 < groups) {
        for (int l = 0; l < Q4_BYTES; l += 64) _mm_prefetch(in->next + (g + 2) * Q4_BYTES + l, _MM_HINT_T0);
        unpack_codes(in->weights + 2 * (g + 2) * Q4_BYTES, pipeline->codes[(stage + 2) % STAGES]);
    }
    if (g >= 2 && g < groups + 2)
        add_group_sums(rows, pipeline->sums[(stage + 2) % STAGES], in->sums + g - 2, groups,
                       in->weights + 2 * (g - 2) * Q4_BYTES, total);
    if (g < groups) store_group_sums(stage, pipeline->sums[stage]);
}

/* `rows` rows by 16 outputs from `output` on. */
ALWAYS_INLINE void gemm_w4a8_amx_rows(const int rows, QuantizedRows x, const LinearWeights *w, int64_t output, scalar_t *y) {
    int64_t groups = w->inputs / GROUP, second = output / LANES % 2;
    const char *panels = (const char *)w->weight + output / (2 * LANES) * 2 * groups * Q4_BYTES;
    const PanelOperands in = {
        x.codes, x.sums, panels + second * Q4_BYTES, panels + (2 + second) * groups * Q4_BYTES, w->inputs, groups,
    };
    Pipeline pipeline;
    __m512 total[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < 2 && g < groups; g++) unpack_codes(in.weights + 2 * g * Q4_BYTES, pipeline.codes[g]);
    for (int64_t g = 0; g < groups + 2; g += STAGES) {
        pipeline_step(rows, 0, g, &in, &pipeline, total);
        pipeline_step(rows, 1, g + 1, &in, &pipeline, total);
        pipeline_step(rows, 2, g + 2, &in, &pipeline, total);
        pipeline_step(rows, 3, g + 3, &in, &pipeline, total);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        __m512 values = _mm512_mul_ps(total[r], _mm512_set1_ps(x.scales[r]));
        store_outputs(values, bias_at(w, output), y + r * w->outputs + output);
    }
}

/* See gemm_w4a8. */
static void gemm_w4a8_amx(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    int64_t configured = 0;
    for (int64_t out = range.begin; out < range.end; out += 2 * LANES)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_rows(rows - r, TILE_ROWS);
            if (configured != taken) configure_group_tiles(configured = taken);
            for (int64_t p = 0; p < 2; p++) {
                QuantizedRows from = rows_from(x, r, w->inputs);
                DISPATCH_ROWS(16, taken, gemm_w4a8_amx_rows, from, w, out + p * LANES, y + r * w->outputs)
            }
        }
    _tile_release();
}
#endif

#endif
