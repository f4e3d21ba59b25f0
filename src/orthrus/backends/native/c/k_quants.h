/* K-quants, as GGUF files hold them: 256 inputs of an output are a super-block. Its groups of 32 inputs (Q4_K, Q5_K) have a
 * scale and a minimum, its groups of 16 (Q6_K) a scale alone: integers in units of one fp16 number per super-block.
 *
 * A packed super-block is 256 inputs of 16 outputs: the units of the scales and, negated, of the minima (fp16); for every 32
 * inputs 16 scales and 16 minima (uint8), in Q6_K 16 scales of the first 16 inputs and 16 of the last (int8); the codes. */
#ifndef ORTHRUS_K_QUANTS_H
#define ORTHRUS_K_QUANTS_H

#include <stdint.h>

#include "group_quantized.h"
#include "linear_weights.h"
#include "simd.h"

enum { SUPER_BLOCK = 256, SUPER_BLOCK_GROUPS = SUPER_BLOCK / GROUP };
enum { UNITS_BYTES = 4 * LANES, GROUP_SCALES_BYTES = 2 * LANES };
enum { K_HEADER_BYTES = UNITS_BYTES + SUPER_BLOCK_GROUPS * GROUP_SCALES_BYTES };

static inline int is_k_quant(int64_t format) { return format >= FORMAT_Q4_K && format <= FORMAT_Q6_K; }

/* Bytes of the codes of 32 inputs of 16 outputs. */
static inline int64_t k_codes_bytes(int64_t format) {
    return GROUP_WEIGHTS / 8 * (format == FORMAT_Q4_K ? 4 : format == FORMAT_Q5_K ? 5 : 6);
}

static inline int64_t super_block_bytes(int64_t format) {
    return K_HEADER_BYTES + SUPER_BLOCK_GROUPS * k_codes_bytes(format);
}

/* Bytes of 32 inputs of a panel of 16 outputs, their share of a super-block included. */
static inline int64_t stored_group_bytes(int64_t format) {
    if (format == FORMAT_PLAIN) return GROUP_WEIGHTS * (int64_t)sizeof(scalar_t);
    return is_k_quant(format) ? super_block_bytes(format) / SUPER_BLOCK_GROUPS : group_bytes(format);
}

#endif
