/* The vectors of tokens, in scalars or as a GGUF file stores them: only the rows at hand are expanded, to the values that
 * quantization.py and k_quants.py give, rounded once. Every product is exact. */
#ifndef ORTHRUS_EMBEDDING_H
#define ORTHRUS_EMBEDDING_H

#include <stdint.h>
#include <string.h>

#include "group_quantized.h"
#include "k_quants.h"
#include "simd.h"

/* How rows are stored: scalars, or groups or super-blocks of a type of GGML. */
enum {
    ROWS_PLAIN,
    ROWS_Q4_0,
    ROWS_Q4_1,
    ROWS_Q5_0,
    ROWS_Q5_1,
    ROWS_Q8_0,
    ROWS_Q4_K,
    ROWS_Q5_K,
    ROWS_Q6_K
};

/* rows [vocabulary][hidden], each of `row_bytes` */
typedef struct {
    const void *rows;
    int64_t hidden, row_bytes, type;
} EmbeddingTable;

static inline float float_of_stored_half(const uint8_t *stored) {
    uint32_t half = stored[0] | (uint32_t)stored[1] << 8, magnitude = half & 0x7fff, bits;
    float value = (float)magnitude * 0x1p-24f; /* below 0x400 the half is denormal */
    if (magnitude >= 0x400) {
        bits = (magnitude << 13) + ((127 - 15) << 23);
        memcpy(&value, &bits, sizeof value);
    }
    return half & 0x8000 ? -value : value;
}

/* scale * code for `count` codes. A product that is zero keeps its sign, so no minimum of zero may be added. */
ALWAYS_INLINE void store_scaled(const int8_t *codes, const int count, float scale, scalar_t *out) {
    for (int i = 0; i < count; i++) out[i] = from_float((float)codes[i] * scale);
}

ALWAYS_INLINE void store_scaled_above(const int8_t *codes, float scale, float min, scalar_t *out) {
    for (int i = 0; i < GROUP; i++) out[i] = from_float((float)codes[i] * scale + min);
}

/* The lower or, by `shift` 4, the upper halves of bytes. */
ALWAYS_INLINE void nibbles(const uint8_t *bytes, const int count, const int shift, int8_t *codes) {
    for (int i = 0; i < count; i++) codes[i] = (int8_t)(bytes[i] >> shift & 15);
}

/* Q4_0 to Q8_0: the scale, a minimum if there are any, the fifth bits if there are any, the codes. */
ALWAYS_INLINE void expand_groups(const int64_t type, const uint8_t *group, int64_t size, scalar_t *out) {
    const int five = type == ROWS_Q5_0 || type == ROWS_Q5_1, mins = type == ROWS_Q4_1 || type == ROWS_Q5_1;
    const int codes_at = 2 + 2 * mins + 4 * five, bytes = codes_at + (type == ROWS_Q8_0 ? GROUP : GROUP / 2);
    for (int64_t i = 0; i < size; i += GROUP, group += bytes, out += GROUP) {
        float scale = float_of_stored_half(group);
        int8_t codes[GROUP];
        if (type == ROWS_Q8_0) memcpy(codes, group + codes_at, GROUP);
        else {
            nibbles(group + codes_at, GROUP / 2, 0, codes);
            nibbles(group + codes_at, GROUP / 2, 4, codes + GROUP / 2);
        }
        if (five) {
            uint32_t fifth;
            memcpy(&fifth, group + codes_at - 4, sizeof fifth);
            for (int c = 0; c < GROUP; c++) codes[c] = (int8_t)(codes[c] | (fifth >> c & 1) << 4);
        }
        if (mins) store_scaled_above(codes, scale, float_of_stored_half(group + 2), out);
        else if (type == ROWS_Q4_0) store_scaled_above(codes, scale, -8.0f * scale, out);
        else {
            for (int c = 0; c < GROUP && type == ROWS_Q5_0; c++) codes[c] = (int8_t)(codes[c] - 16);
            store_scaled(codes, GROUP, scale, out);
        }
    }
}

/* Q4_K and Q5_K: two units, scales and minima of six bits, the fifth bits if there are any, the codes. */
ALWAYS_INLINE void expand_k_with_mins(const int five, const uint8_t *block, int64_t size, scalar_t *out) {
    const int bytes = 16 + 32 * five + SUPER_BLOCK / 2;
    for (int64_t i = 0; i < size; i += SUPER_BLOCK, block += bytes) {
        float d = float_of_stored_half(block), dmin = float_of_stored_half(block + 2);
        const uint8_t *scales = block + 4, *fifth = block + 16, *stored = fifth + 32 * five;
        for (int g = 0; g < SUPER_BLOCK_GROUPS; g++, out += GROUP) {
            int scale = scales[g] & 63, min = scales[g + 4] & 63;
            if (g >= 4) {
                scale = (scales[g + 4] & 15) | (scales[g - 4] >> 2 & 48);
                min = scales[g + 4] >> 4 | (scales[g] >> 2 & 48);
            }
            int8_t codes[GROUP];
            nibbles(stored + g / 2 * GROUP, GROUP, g % 2 ? 4 : 0, codes);
            for (int c = 0; c < GROUP && five; c++) codes[c] = (int8_t)(codes[c] | (fifth[c] >> g & 1) << 4);
            store_scaled_above(codes, (float)scale * d, -((float)min * dmin), out);
        }
    }
}

/* Q6_K: the lower four bits, the upper two, a scale for every 16 inputs, their unit. */
static void expand_q6_k(const uint8_t *block, int64_t size, scalar_t *out) {
    for (int64_t i = 0; i < size; i += SUPER_BLOCK, block += 210) {
        const uint8_t *scales = block + 192;
        float d = float_of_stored_half(block + 208);
        for (int g = 0; g < SUPER_BLOCK_GROUPS; g++, out += GROUP) {
            const uint8_t *low = block + 64 * (g / 4) + GROUP * (g % 2), *high = block + 128 + GROUP * (g / 4);
            int8_t codes[GROUP];
            nibbles(low, GROUP, g % 4 < 2 ? 0 : 4, codes);
            for (int c = 0; c < GROUP; c++) codes[c] = (int8_t)((codes[c] | (high[c] >> 2 * (g % 4) & 3) << 4) - 32);
            store_scaled(codes, GROUP / 2, (float)(int8_t)scales[2 * g] * d, out);
            store_scaled(codes + GROUP / 2, GROUP / 2, (float)(int8_t)scales[2 * g + 1] * d, out + GROUP / 2);
        }
    }
}

/* The vector of a token: where it lies if it is stored in scalars, else expanded into `scratch` [hidden]. */
static const scalar_t *embedding_of(const EmbeddingTable *table, int64_t token, scalar_t *scratch) {
    const uint8_t *row = (const uint8_t *)table->rows + token * table->row_bytes;
    int64_t size = table->hidden;
    switch (table->type) {
    case ROWS_PLAIN: return (const scalar_t *)row;
    case ROWS_Q4_0: expand_groups(ROWS_Q4_0, row, size, scratch); break;
    case ROWS_Q4_1: expand_groups(ROWS_Q4_1, row, size, scratch); break;
    case ROWS_Q5_0: expand_groups(ROWS_Q5_0, row, size, scratch); break;
    case ROWS_Q5_1: expand_groups(ROWS_Q5_1, row, size, scratch); break;
    case ROWS_Q8_0: expand_groups(ROWS_Q8_0, row, size, scratch); break;
    case ROWS_Q4_K: expand_k_with_mins(0, row, size, scratch); break;
    case ROWS_Q5_K: expand_k_with_mins(1, row, size, scratch); break;
    default: expand_q6_k(row, size, scratch);
    }
    return scratch;
}

/* The vectors of `count` tokens: out [count][hidden]. */
void embedding_rows(const EmbeddingTable *table, const int64_t *tokens, scalar_t *out, int64_t count) {
    for (int64_t i = 0; i < count; i++, out += table->hidden) {
        const scalar_t *row = embedding_of(table, tokens[i], out);
        if (row != out) memcpy(out, row, table->hidden * (int64_t)sizeof(scalar_t));
    }
}

#endif
