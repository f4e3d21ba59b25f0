/* Groups of four bits expanded to bf16 by tables (AVX512-BF16): 32 inputs of an output have at most sixteen different values, so
 * these are computed, and looked up for four outputs at a time. The order is that of the weights of gemm_bf16.h: a word holds
 * the inputs i, i + 8, i + 16 and i + 24 of an output. Codes of more bits are expanded one by one: see code_fields.h. */
#ifndef ORTHRUS_DEQUANTIZE_QUADS_H
#define ORTHRUS_DEQUANTIZE_QUADS_H

#include <stdint.h>

#include "code_fields.h"
#include "group_quantized.h"
#include "linear_weights.h"
#include "packed_groups.h"
#include "simd.h"

static inline int in_quads(int64_t format) { return LANES_IN_PAIRS && (format == FORMAT_Q4 || format == FORMAT_Q4_K); }

#if LANES_IN_PAIRS && defined(BFLOAT16)
ALWAYS_INLINE const char *load_quads(const int64_t format, const char *panel, int64_t group, GroupScales *to) {
    PanelScales by;
    const char *codes = load_codes(format, panel, group, &by);
    f32_store(to->scale, by.scale);
    f32_store(to->min, by.other);
    __asm__("" : "+m"(*to)); /* otherwise the compiler keeps them in registers */
    return codes;
}

/* The weights of the outputs q, q + 4, q + 8, q + 12 by 32 inputs: w[c] has the inputs 8 c to 8 c + 7. */
ALWAYS_INLINE void dequantize_quad(const char *codes, const GroupScales *by, int q, i32x16 *w) {
    const f32x16 all_codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const i32x16 code_mask = _mm512_set1_epi16(15);
    const int64_t one = 0x10001000100010; /* four words of 16 */
    const i32x16 output = _mm512_set_epi64(3 * one, 3 * one, 2 * one, 2 * one, one, one, 0, 0);
    f32x16 values[4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++)
        values[l] = f32_fma(all_codes, f32_broadcast(by->scale + 4 * l + q), f32_broadcast(by->min + 4 * l + q));
    i32x16 low = bf16_of_halves(values[0], values[1]), high = bf16_of_halves(values[2], values[3]);
    i32x16 packed = i32_load(codes + 64 * q);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        i32x16 index = _mm512_ternarylogic_epi32(c ? _mm512_srli_epi16(packed, 4 * c) : packed, code_mask, output, 0xEA);
        w[c] = _mm512_permutex2var_epi16(low, index, high);
    }
}
#endif

#endif
