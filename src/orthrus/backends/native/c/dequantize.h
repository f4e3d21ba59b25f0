/* Group-quantised weights expanded to bf16. */
#ifndef ORTHRUS_DEQUANTIZE_H
#define ORTHRUS_DEQUANTIZE_H

#include <stdint.h>

#include "code_fields.h"
#include "dequantize_quads.h"
#include "gemm_bf16.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "packed_groups.h"
#include "simd.h"

#ifdef BFLOAT16
enum { PAIRS = GROUP / 2 };

/* A group that is being expanded: its codes, and the scales of the lanes of its halves. */
typedef struct {
    const char *codes;
    i32x16 spare;
    PanelScales by[2];
} GroupInLanes;

ALWAYS_INLINE GroupInLanes load_lanes_of_group(const int64_t format, const char *panel, int64_t group) {
    PanelScales by;
    GroupInLanes in;
    in.codes = load_codes(format, panel, group, &by);
    in.spare = spare_words(code_bits(format), in.codes);
#pragma GCC unroll 2
    for (int s = 0; s < 2; s++) {
#if LANES_IN_PAIRS
        in.by[s] = (PanelScales){f32_double_lanes(by.scale, s), f32_double_lanes(by.other, s)};
#else
        in.by[s] = by;
#endif
    }
    return in;
}

/* The weights of a half, in fp32, rounded once. */
ALWAYS_INLINE f32x16 expand_half(const int64_t format, const GroupInLanes *in, const int half) {
    float unit;
    const PanelScales *by = in->by + half % 2;
    f32x16 raised = raised_codes(code_bits(format), in->codes, in->spare, half, &unit);
    if (has_mins(format)) return f32_fma(f32_sub(raised, f32_set1(unit)), by->scale, by->other);
    float zero = unit + (float)zero_code(format);
    if (format == FORMAT_Q6_K) return f32_mul(f32_sub(raised, f32_set1(zero)), half < HALVES / 2 ? by->scale : by->other);
    return f32_fma(raised, by->scale, f32_mul(by->scale, f32_set1(-zero))); /* scales have eleven bits: all is exact */
}

/* The inputs 2 v and 2 v + 1 of sixteen outputs. */
#ifdef HAVE_BF16_DOT
ALWAYS_INLINE i32x16 expand_pair(const int64_t format, const GroupInLanes *in, const int v) {
    return bf16_of_halves(expand_half(format, in, 2 * v), expand_half(format, in, 2 * v + 1));
}

/* A panel of 16 outputs: [inputs / 2][16 outputs][2], or in the order of gemm_bf16.h where it is expanded in quads. */
ALWAYS_INLINE void dequantize_panel(const int64_t format, const char *panel, int64_t depth, scalar_t *expanded) {
    for (int64_t group = 0; group < depth / GROUP; group++, expanded += GROUP_WEIGHTS) {
        prefetch_group(panel + group * stored_group_bytes(format), stored_group_bytes(format));
#if LANES_IN_PAIRS
        GroupScales scales;
        const char *codes = in_quads(format) ? load_quads(format, panel, group, &scales) : 0;
#pragma GCC unroll 4
        for (int q = 0; q < 4 && in_quads(format); q++) {
            i32x16 weights[4];
            dequantize_quad(codes, &scales, q, weights);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) i32_store(expanded + 4 * DOT_INPUTS * (4 * c + q), weights[c]);
        }
        if (in_quads(format)) continue;
#endif
        const GroupInLanes in = load_lanes_of_group(format, panel, group);
#pragma GCC unroll 16
        for (int v = 0; v < PAIRS; v++) i32_store(expanded + 2 * LANES * v, expand_pair(format, &in, v));
    }
}
#else
/* In fp32. */
typedef struct {
    f32x16 even, odd;
} WeightPairs;

ALWAYS_INLINE WeightPairs expand_pair(const int64_t format, const GroupInLanes *in, const int v) {
    f32x16 even = expand_half(format, in, 2 * v), odd = expand_half(format, in, 2 * v + 1);
    return (WeightPairs){nearest_bf16(even), nearest_bf16(odd)};
}
#endif
#endif

#endif
