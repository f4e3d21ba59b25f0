/* The products of attention over one chunk of keys on tiles, in bf16. A row takes part in products with keys that it does not
 * attend to, with a weight of zero: that adds zeros, which changes no bit of a sum. */
#ifndef ORTHRUS_ATTENTION_AMX_H
#define ORTHRUS_ATTENTION_AMX_H

#include <stdint.h>
#include <string.h>

#include "amx.h"
#include "attention_scratch.h"
#include "pack.h"
#include "simd.h"

#if defined(HAVE_AMX) && defined(BFLOAT16)
#define HAVE_ATTENTION_AMX
/* Whether heads of this size go by tiles. */
static inline int attention_on_tiles(int64_t size) { return use_amx && size % 32 == 0; }

/* scores[r][j] = q_r k_j for 16 rows at a time over pairs of panels of 16 transposed keys. */
static void qk_scores_amx(const AttentionScratch *scratch, int64_t rows, int64_t panels, int64_t size) {
    int64_t words = size / 2;
    const int32_t *keys = scratch->packed_keys;
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < panels; c += 2) {
            float *scores = scratch->weights + r * KEY_CHUNK + 16 * c;
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t i = 0; i < words; i += 16) {
                _tile_loadd(4, scratch->queries + r * size + 2 * i, size * (int64_t)sizeof(scalar_t));
                _tile_loadd(6, keys + 16 * (c * words + i), TILE_ROW_BYTES);
                _tile_loadd(7, keys + 16 * ((c + 1) * words + i), TILE_ROW_BYTES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
            _tile_stored(0, scores, KEY_CHUNK * 4);
            _tile_stored(1, scores + 16, KEY_CHUNK * 4);
        }
}

/* Where the pairs of a chunk of values are: behind the transposed keys. */
static inline scalar_t *value_pairs(const AttentionScratch *scratch, int64_t size) {
    return (scalar_t *)(scratch->packed_keys + KEY_CHUNK * size / 2);
}

/* v [count, size] in pairs of keys, [padded / 2][size][2]; zeros stand for keys beyond `count`. */
static void pack_values(const scalar_t *v, scalar_t *pairs, int64_t count, int64_t padded, int64_t size) {
    for (int64_t j = 0; j < padded; j += 2, v += 2 * size, pairs += 2 * size)
        for (int64_t i = 0; i < size; i += 32) {
            __m512i interleaved[2];
            interleave_pairs(v + i, count - j, size, ~0u, interleaved);
            _mm512_storeu_si512(pairs + 2 * i, interleaved[0]);
            _mm512_storeu_si512(pairs + 2 * i + 32, interleaved[1]);
        }
}

/* Tiles 0 and 1 += weights[r] v for 16 rows from r on and 32 features from i on, over the keys from `first` to `stop`
 * in steps of 32. */
static inline void multiply_values(const AttentionScratch *scratch, const scalar_t *pairs, int64_t r, int64_t i, int64_t first,
                                   int64_t stop, int64_t size) {
    for (int64_t j = first; j < stop; j += 32) {
        _tile_loadd(4, (const scalar_t *)(scratch->weights + r * KEY_CHUNK) + j, KEY_CHUNK * 4);
        _tile_loadd(6, pairs + j * size + 2 * i, size * 4);
        _tile_loadd(7, pairs + j * size + 2 * i + 32, size * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
}

/* sums[n] = sums[n] * rescale[n] + tiles 0 and 1, for the rows n from r to `stop`, at most 16, and features from i on. */
static inline void add_products(const AttentionScratch *scratch, int64_t r, int64_t stop, int64_t i, int64_t size) {
    float products[2][16][16] __attribute__((aligned(64)));
    _tile_stored(0, products[0], TILE_ROW_BYTES);
    _tile_stored(1, products[1], TILE_ROW_BYTES);
    for (int64_t n = r; n < stop && n < r + 16; n++)
        for (int64_t half = 0; half < 2; half++) {
            float *to = scratch->sums + n * size + i + 16 * half;
            __m512 old = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(scratch->rescale[n]));
            _mm512_storeu_ps(to, _mm512_add_ps(old, _mm512_load_ps(products[half][n - r])));
        }
}

/* sums[r] = sums[r] * rescale[r] + weights[r] v over `count` keys, a multiple of 32, of packed values. */
static void weighted_sum_amx(const AttentionScratch *scratch, const scalar_t *pairs, int64_t rows, int64_t count,
                             int64_t size) {
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t i = 0; i < size; i += 32) {
            _tile_zero(0);
            _tile_zero(1);
            multiply_values(scratch, pairs, r, i, 0, count, size);
            add_products(scratch, r, rows, i, size);
        }
}
#endif

#endif
