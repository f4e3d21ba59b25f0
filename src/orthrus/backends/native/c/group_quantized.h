/* Group-quantised weights, as GGUF files hold them: 32 inputs of an output share a scale and, in Q4 and Q5_1, a minimum.
 *
 * A packed group is 32 inputs of 16 outputs: their codes, 16 scales and, where there are any, 16 minima (fp16). Of Q5_0 the
 * code 16 stands for zero. */
#ifndef ORTHRUS_GROUP_QUANTIZED_H
#define ORTHRUS_GROUP_QUANTIZED_H

#include <stdint.h>

#include "linear_weights.h"
#include "simd.h"

enum { GROUP = 32, GROUP_WEIGHTS = GROUP * LANES };
/* Bytes of a packed group. */
enum { Q4_BYTES = GROUP_WEIGHTS / 2 + 4 * LANES, Q8_BYTES = GROUP_WEIGHTS + 2 * LANES };
enum { Q5_CODES_BYTES = GROUP_WEIGHTS / 8 * 5, Q5_0_BYTES = Q5_CODES_BYTES + 2 * LANES, Q5_1_BYTES = Q5_CODES_BYTES + 4 * LANES };

static inline int64_t group_bytes(int64_t format) {
    switch (format) {
    case FORMAT_Q5_0: return Q5_0_BYTES;
    case FORMAT_Q5_1: return Q5_1_BYTES;
    case FORMAT_Q8: return Q8_BYTES;
    default: return Q4_BYTES;
    }
}

static inline int has_five_bits(int64_t format) { return format == FORMAT_Q5_0 || format == FORMAT_Q5_1; }

static inline f32x16 q4_scales(const char *group) {
    return load_f16(group + Q4_BYTES - 4 * LANES);
}

static inline f32x16 q4_mins(const char *group) {
    return load_f16(group + Q4_BYTES - 2 * LANES);
}

static inline f32x16 q8_scales(const char *group) {
    return load_f16(group + Q8_BYTES - 2 * LANES);
}

static inline void prefetch_group(const char *group, int64_t bytes) {
    for (int64_t l = 0; l < bytes; l += 64) prefetch_ahead(group + l);
}

/* The scales and minima of a packed group in fp32, in memory: a load repeats one of them in all lanes for free. */
typedef struct {
    float scale[LANES], min[LANES];
} GroupScales;

static inline void load_group_scales(int64_t format, const char *group, GroupScales *to) {
    if (format == FORMAT_Q4) {
        f32_store(to->scale, q4_scales(group));
        f32_store(to->min, q4_mins(group));
    } else if (has_five_bits(format)) {
        f32x16 scales = load_f16(group + Q5_CODES_BYTES);
        f32_store(to->scale, scales);
        f32x16 mins = format == FORMAT_Q5_1 ? load_f16(group + Q5_CODES_BYTES + 2 * LANES) : f32_mul(scales, f32_set1(-16.0f));
        f32_store(to->min, mins);
    } else f32_store(to->scale, q8_scales(group));
    __asm__("" : "+m"(*to)); /* otherwise the compiler keeps them in registers */
}

#endif
