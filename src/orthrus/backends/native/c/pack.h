/* Transposes and interleaves values into the order in which vector and tile products read them. */
#ifndef ORTHRUS_PACK_H
#define ORTHRUS_PACK_H

#include <stdint.h>
#include <string.h>

#include "simd.h"

#ifdef SIMD_AVX512
#include "pack_avx512.h"
#else
/* 16 x 16 words: out[16 i + j] = rows[j][i]. The rows lie `stride` words apart; there are `count` of them with `words` words
 * each, and zeros stand for the others. */
static inline void transpose_16x16(const int32_t *rows, int64_t stride, int64_t count, int64_t words, int32_t *out) {
    static const int32_t zeros[16];
    for (int64_t j = 0; j < 16; j += 4)
        for (int64_t i = 0; i < 16; i += 4) {
            const int32_t *block[4];
            for (int64_t k = 0; k < 4; k++) block[k] = j + k < count && i < words ? rows + (j + k) * stride + i : zeros;
            transpose_4x4(block, out + 16 * i + j, 16);
        }
}

/* 8 inputs of 16 outputs, in place: [4][4 outputs, 4 apart][8] as for dot products become [4][16 outputs][2] as for tiles. */
static inline void quads_to_pairs(uint16_t *weights) {
    int32_t quads[4 * LANES], pairs[4 * LANES];
    memcpy(quads, weights, sizeof quads);
    for (int l = 0; l < 4; l++) {
        const int32_t *rows[4];
        for (int q = 0; q < 4; q++) rows[q] = quads + LANES * q + 4 * l;
        transpose_4x4(rows, pairs + 4 * l, LANES);
    }
    memcpy(weights, pairs, sizeof pairs);
}

/* The values of two keys, interleaved: of 16 features in pairs[0], of 16 more in pairs[1]. Zeros stand for keys beyond
 * `count` and for features outside the mask. */
static inline void interleave_pairs(const uint16_t *v, int64_t count, int64_t size, uint32_t features, i32x16 *pairs) {
    static const uint16_t zeros[32];
    const uint16_t *first = count > 0 ? v : zeros, *second = count > 1 ? v + size : zeros;
    pairs[0] = interleave_i16(first, second);
    pairs[1] = features >> 16 ? interleave_i16(first + 16, second + 16) : i32_zero();
}
#endif

#endif
