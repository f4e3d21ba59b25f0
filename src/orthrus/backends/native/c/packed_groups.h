/* One packed group of 32 inputs of 16 outputs, of any type: what its codes stand for, its scales, and where it lies. */
#ifndef ORTHRUS_PACKED_GROUPS_H
#define ORTHRUS_PACKED_GROUPS_H

#include <stdint.h>

#include "group_quantized.h"
#include "k_quants.h"
#include "linear_weights.h"
#include "simd.h"

static inline int code_bits(int64_t format) {
    switch (format) {
    case FORMAT_Q4:
    case FORMAT_Q4_K: return 4;
    case FORMAT_Q6_K: return 6;
    case FORMAT_Q8: return 8;
    default: return 5;
    }
}

/* The code that stands for zero, of formats without minima: those of eight bits are packed without a sign. */
static inline int zero_code(int64_t format) {
    switch (format) {
    case FORMAT_Q5_0: return 16;
    case FORMAT_Q6_K: return 32;
    case FORMAT_Q8: return 128;
    default: return 0;
    }
}

static inline int has_mins(int64_t format) {
    return format == FORMAT_Q4 || format == FORMAT_Q5_1 || format == FORMAT_Q4_K || format == FORMAT_Q5_K;
}

/* Sixteen scales, and as many minima or, for Q6_K, scales of the last 16 inputs. */
typedef struct {
    f32x16 scale, other;
} PanelScales;

/* The codes of a group of a panel of 16 outputs, and their scales. Every product is exact. */
ALWAYS_INLINE const char *load_codes(const int64_t format, const char *panel, int64_t group, PanelScales *by) {
    if (!is_k_quant(format)) {
        const char *codes = panel + group * group_bytes(format), *scales = codes + GROUP_WEIGHTS / 8 * code_bits(format);
        by->scale = load_f16(scales);
        by->other = has_mins(format) ? load_f16(scales + 2 * LANES) : f32_zero();
        return codes;
    }
    int64_t g = group % SUPER_BLOCK_GROUPS;
    const char *super_block = panel + group / SUPER_BLOCK_GROUPS * super_block_bytes(format);
    const char *scales = super_block + UNITS_BYTES + g * GROUP_SCALES_BYTES;
    f32x16 d = load_f16(super_block);
    if (format == FORMAT_Q6_K) by->scale = f32_mul(d, load_i8(scales)), by->other = f32_mul(d, load_i8(scales + LANES));
    else {
        by->scale = f32_mul(d, load_u8(scales));
        by->other = f32_mul(load_f16(super_block + 2 * LANES), load_u8(scales + LANES));
    }
    return super_block + K_HEADER_BYTES + g * k_codes_bytes(format);
}

#endif
