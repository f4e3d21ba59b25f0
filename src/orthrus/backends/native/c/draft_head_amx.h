/* The products of the draft head on tiles. Weights are the left operand, as they lie in memory. What they are multiplied by
 * are columns: [size / 2][columns][2]. */
#ifndef ORTHRUS_DRAFT_HEAD_AMX_H
#define ORTHRUS_DRAFT_HEAD_AMX_H

#include <stdint.h>

#include "amx.h"
#include "simd.h"

#if defined(HAVE_AMX) && defined(BFLOAT16)
#define HAVE_HEAD_AMX
/* Outputs at a time, and the most columns. */
enum { COLUMN_OUTPUTS = 2 * TILE_ROWS, MAX_COLUMNS = 16 };

/* Tiles for products with `count` columns. */
static void configure_column_tiles(int64_t count) {
    TileShape sums = {TILE_ROWS, 4 * count}, weights = {TILE_ROWS, TILE_ROW_BYTES};
    configure_tiles((TileShape[8]){sums, sums, sums, sums, sums, sums, weights, weights});
}

/* Adds the products of COLUMN_OUTPUTS rows of w, of `size` elements each, with columns that lie among `stride` ones to the
 * tiles 0 and 1. */
static inline void add_columns(const scalar_t *w, int64_t size, const int32_t *columns, int64_t stride) {
    for (int64_t k = 0; k < size; k += 32, columns += 16 * stride) {
        _tile_loadd(4, columns, 4 * stride);
        _tile_loadd(6, w + k, 2 * size);
        _tile_loadd(7, w + TILE_ROWS * size + k, 2 * size);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 7, 4);
    }
}

static inline void zero_column_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
}

/* sums [COLUMN_OUTPUTS][count] */
static inline void store_column_sums(float *sums, int64_t count) {
    _tile_stored(0, sums, 4 * count);
    _tile_stored(1, sums + TILE_ROWS * count, 4 * count);
}

/* out = w x, for `outputs` rows of w; the tiles are those for one column. */
static void multiply_column(const scalar_t *w, const scalar_t *x, int64_t outputs, int64_t size, float *out) {
    for (int64_t o = 0; o < outputs; o += COLUMN_OUTPUTS) {
        zero_column_sums();
        add_columns(w + o * size, size, (const int32_t *)x, 1);
        store_column_sums(out + o, 1);
    }
}
#endif

#endif
