/* Group-quantised weights expanded to bf16, in the order of gemm_bf16.h. */
#ifndef ORTHRUS_DEQUANTIZE_H
#define ORTHRUS_DEQUANTIZE_H

#include <stdint.h>

#include "gemm_bf16.h"
#include "group_quantized.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "simd.h"

#ifdef BFLOAT16
#if defined(SIMD_AVX512) && defined(HAVE_BF16_DOT)
#include "dequantize_avx512.h"
#else
#include "dequantize_pairs.h"
#endif

/* The codes of the inputs `k` to `k` + 31 of a panel of 16 outputs, and their scales and minima. */
ALWAYS_INLINE const char *load_group(const int64_t format, const char *panel, int64_t k, GroupScales *scales) {
    const char *group = panel + k / GROUP * stored_group_bytes(format);
    prefetch_group(group, stored_group_bytes(format));
    if (is_k_quant(format)) {
        int64_t g = k % SUPER_BLOCK / GROUP;
        const char *super_block = panel + k / SUPER_BLOCK * super_block_bytes(format);
        load_k_scales(format, super_block, g, scales);
        group = super_block + K_HEADER_BYTES + g * k_codes_bytes(format);
    } else if (format != FORMAT_PLAIN) load_group_scales(format, group, scales);
    return group;
}

/* A panel of 16 outputs, expanded to the order of gemm_bf16.h. */
ALWAYS_INLINE void dequantize_panel(const int64_t format, const char *w, int64_t depth, scalar_t *expanded) {
    for (int64_t k = 0; k < depth; k += GROUP) {
        GroupScales scales;
        const char *codes = load_group(format, w, k, &scales);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            i32x16 weights[4];
            dequantize_quad(format, codes, &scales, q, weights);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) i32_store(expanded + (k + DOT_INPUTS * c) * LANES + 4 * DOT_INPUTS * q, weights[c]);
        }
    }
}
#endif

#endif
