/* Products of group-quantised weights with int8 activations on tiles, for more rows than are cheaper on vectors: the same sums
 * in the same order. See gemm_codes.h. */
#ifndef ORTHRUS_GEMM_CODES_AMX_H
#define ORTHRUS_GEMM_CODES_AMX_H

#include <stdint.h>

#include "amx.h"
#include "dispatch.h"
#include "group_codes.h"
#include "linear_weights.h"
#include "quantize.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_AMX
/* Steps in flight, of the inputs that share a scale: while step s is multiplied, s + 2 is unpacked and s - 2 is added, because
 * a load right after the store of what it reads would wait for it. */
enum { STAGES = 4 };

typedef struct {
    uint8_t codes[STAGES][GROUP_WEIGHTS] __attribute__((aligned(64)));
    int32_t sums[STAGES][TILE_ROWS * LANES] __attribute__((aligned(64)));
    float total[TILE_ROWS * LANES] __attribute__((aligned(64)));
} Pipeline;

/* A panel of 16 outputs and the rows that it is multiplied by, and the panel that comes next. */
typedef struct {
    QuantizedRows x;
    const char *panel, *next;
    int64_t rows, depth, steps;
} PanelProduct;

static inline int64_t step_inputs(int64_t format) { return format == FORMAT_Q6_K ? GROUP / 2 : GROUP; }

/* Tiles 0-3 hold sums of one step each. A row of a tile of weights has four inputs of 16 outputs. */
static void configure_step_tiles(int64_t format, int64_t rows) {
    int64_t inputs = step_inputs(format);
    TileShape sums = {rows, TILE_ROW_BYTES}, codes = {rows, inputs}, weights = {inputs / 4, TILE_ROW_BYTES};
    configure_tiles((TileShape[8]){sums, sums, sums, sums, codes, codes, weights, weights});
}

/* The codes of a step, one per byte. */
ALWAYS_INLINE void unpack_step(const int64_t format, const PanelProduct *in, int64_t step, const int half, uint8_t *codes) {
    PanelScales unused;
    int64_t group = step * step_inputs(format) / GROUP;
    const char *packed = load_codes(format, in->panel, group, &unused);
    const int pairs = (int)step_inputs(format) / 8, first = format == FORMAT_Q6_K ? pairs * half : 0;
    for (int64_t l = 0; l < stored_group_bytes(format); l += 64)
        _mm_prefetch(in->next + group * stored_group_bytes(format) + l, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int t = 0; t < pairs; t++) {
        CodePair pair = unpack_codes(format, packed, first + t);
        _mm512_store_si512(codes + 128 * t, pair.first);
        _mm512_store_si512(codes + 128 * t + 64, pair.second);
    }
}

#define MULTIPLY_STEP(sums_tile, codes_tile, weights_tile, x, depth, w)                                                \
    do {                                                                                                               \
        _tile_zero(sums_tile);                                                                                         \
        _tile_loadd(codes_tile, x, depth);                                                                             \
        _tile_loadd(weights_tile, w, TILE_ROW_BYTES);                                                                  \
        _tile_dpbsud(sums_tile, codes_tile, weights_tile);                                                             \
    } while (0)

/* One step, in the tiles of its stage. */
ALWAYS_INLINE void multiply_step(const int stage, const uint8_t *x, int64_t depth, const uint8_t *w) {
    switch (stage) {
    case 0: MULTIPLY_STEP(0, 4, 6, x, depth, w); break;
    case 1: MULTIPLY_STEP(1, 5, 7, x, depth, w); break;
    case 2: MULTIPLY_STEP(2, 4, 6, x, depth, w); break;
    default: MULTIPLY_STEP(3, 5, 7, x, depth, w);
    }
}

ALWAYS_INLINE void store_step_sums(const int stage, int32_t *sums) {
    switch (stage) {
    case 0: _tile_stored(0, sums, TILE_ROW_BYTES); break;
    case 1: _tile_stored(1, sums, TILE_ROW_BYTES); break;
    case 2: _tile_stored(2, sums, TILE_ROW_BYTES); break;
    default: _tile_stored(3, sums, TILE_ROW_BYTES);
    }
}

/* Adds the sums of a step, scaled, to those of all steps. */
ALWAYS_INLINE void add_step(const int64_t format, const PanelProduct *in, int64_t step, const int half,
                            const int32_t *products, float *total) {
    PanelScales by;
    int64_t group = step * step_inputs(format) / GROUP, groups = in->depth / GROUP;
    load_codes(format, in->panel, group, &by);
    const RowGroup *row = in->x.groups + group;
    f32x16 scale = format == FORMAT_Q6_K && half ? by.other : by.scale;
#pragma GCC unroll 4
    for (int64_t r = 0; r < in->rows; r++, row += groups) {
        f32x16 before = f32_load(total + r * LANES);
        i32x16 product = i32_add(i32_load(products + r * LANES), products_of_zero(format, row, half));
        f32_store(total + r * LANES, add_products(format, before, product, scale, by.other, row));
    }
}

/* Step s is multiplied in `stage` (s modulo STAGES), s + 2 unpacked, s - 2 added. */
ALWAYS_INLINE void pipeline_step(const int64_t format, const int stage, int64_t s, const PanelProduct *in,
                                 Pipeline *pipeline) {
    const int other = (stage + 2) % STAGES;
    if (s < in->steps)
        multiply_step(stage, in->x.codes + s * step_inputs(format), in->depth, pipeline->codes[stage]);
    if (s + 2 < in->steps) unpack_step(format, in, s + 2, stage % 2, pipeline->codes[other]);
    if (s >= 2 && s < in->steps + 2) add_step(format, in, s - 2, stage % 2, pipeline->sums[other], pipeline->total);
    if (s < in->steps) store_step_sums(stage, pipeline->sums[stage]);
}

/* At most 16 rows by 16 outputs. */
ALWAYS_INLINE void gemm_codes_amx_panel(const int64_t format, const PanelProduct *in, const scalar_t *bias, scalar_t *y,
                                        int64_t outputs) {
    Pipeline pipeline;
    for (int64_t r = 0; r < in->rows; r++) f32_store(pipeline.total + r * LANES, f32_zero());
    unpack_step(format, in, 0, 0, pipeline.codes[0]);
    if (in->steps > 1) unpack_step(format, in, 1, 1, pipeline.codes[1]);
    for (int64_t s = 0; s < in->steps + 2; s += STAGES) {
        pipeline_step(format, 0, s, in, &pipeline);
        pipeline_step(format, 1, s + 1, in, &pipeline);
        pipeline_step(format, 2, s + 2, in, &pipeline);
        pipeline_step(format, 3, s + 3, in, &pipeline);
    }
    for (int64_t r = 0; r < in->rows; r++) store_outputs(f32_load(pipeline.total + r * LANES), bias, y + r * outputs);
}

/* See gemm_codes. */
static void gemm_codes_amx(QuantizedRows x, const LinearWeights *w, scalar_t *y, int64_t rows, Range range) {
    const int64_t format = w->format & ~BY_INT8, depth = w->inputs, outputs = w->outputs;
    int64_t configured = 0, bytes = depth / GROUP * stored_group_bytes(format), steps = depth / step_inputs(format);
    for (int64_t out = range.begin; out < range.end; out += LANES)
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = next_rows(rows - r, TILE_ROWS);
            if (configured != taken) configure_step_tiles(format, configured = taken);
            const char *panel = (const char *)w->weight + out / LANES * bytes;
            const PanelProduct in = {grouped_rows_from(x, r, depth), panel, panel + bytes, taken, depth, steps};
            const scalar_t *bias = bias_at(w, out);
            scalar_t *to = y + r * outputs + out;
            switch (format) {
            case FORMAT_Q4: gemm_codes_amx_panel(FORMAT_Q4, &in, bias, to, outputs); break;
            case FORMAT_Q5_0: gemm_codes_amx_panel(FORMAT_Q5_0, &in, bias, to, outputs); break;
            case FORMAT_Q5_1: gemm_codes_amx_panel(FORMAT_Q5_1, &in, bias, to, outputs); break;
            case FORMAT_Q8: gemm_codes_amx_panel(FORMAT_Q8, &in, bias, to, outputs); break;
            case FORMAT_Q4_K: gemm_codes_amx_panel(FORMAT_Q4_K, &in, bias, to, outputs); break;
            case FORMAT_Q5_K: gemm_codes_amx_panel(FORMAT_Q5_K, &in, bias, to, outputs); break;
            default: gemm_codes_amx_panel(FORMAT_Q6_K, &in, bias, to, outputs);
            }
        }
    _tile_release();
}
#endif

#endif
