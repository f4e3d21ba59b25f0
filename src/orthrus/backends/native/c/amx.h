/* Matrix tiles (AMX): two panels of 16 outputs by at most 32 rows at a time.
 *
 * A step over the depth takes 64 bytes of every row and one tile of 1 KiB of each panel, whatever the type of the values.
 * Tile numbers are part of an instruction, so they are literals everywhere: 0-3 hold sums, 4-5 activations, 6-7 weights. */
#ifndef ORTHRUS_AMX_H
#define ORTHRUS_AMX_H

#include <stdint.h>

#include "simd.h"

/* Whether products run on tiles; else they run on vectors. See library.h. */
extern int use_amx;

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__linux__)
#define HAVE_AMX
enum { TILE_ROWS = 16, TILE_ROW_BYTES = 64, TILE_BYTES = 1024 };

typedef struct {
    int64_t rows, row_bytes;
} TileShape;

/* Loads the shapes of the tiles 0 to 7. */
static void configure_tiles(const TileShape *tiles) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++)
        config.row_bytes[t] = (uint16_t)tiles[t].row_bytes, config.rows[t] = (uint8_t)tiles[t].rows;
    _tile_loadconfig(&config);
}

/* Full tiles for products of `rows` rows, of which tiles 0, 1 and 4 have the first 16, and 2, 3 and 5 the others. */
static void configure_row_tiles(int64_t rows) {
    int64_t others = rows > TILE_ROWS ? rows - TILE_ROWS : 1; /* the shape of a tile that is not used must be valid too */
    TileShape first = {rows < TILE_ROWS ? rows : TILE_ROWS, TILE_ROW_BYTES}, second = {others, TILE_ROW_BYTES};
    TileShape weights = {TILE_ROWS, TILE_ROW_BYTES};
    configure_tiles((TileShape[8]){first, first, second, second, first, second, weights, weights});
}

static inline void prefetch_tile(const char *weights) {
    for (int l = 0; l < TILE_BYTES; l += 64) _mm_prefetch(weights + 4 * TILE_BYTES + l, _MM_HINT_T0);
}

/* name(x, w, second, rows, depth, sums): sums [2 x 16 rows][2 panels] as tiles of at most 32 rows of `depth` bytes by two
 * panels of outputs. `w` points at the tiles of the first panel; those of the second lie `second` bytes behind, 0 if there
 * is none. */
#define DEFINE_AMX_PANELS(name, dot)                                                                                   \
    static inline void name(const char *x, const char *w, int64_t second, int64_t rows, int64_t depth, void *sums) {   \
        int64_t tall = rows > TILE_ROWS;                                                                               \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        for (int64_t k = 0; k < depth; k += TILE_ROW_BYTES, w += TILE_BYTES) {                                         \
            _tile_loadd(4, x + k, depth);                                                                              \
            _tile_loadd(6, w, TILE_ROW_BYTES);                                                                         \
            prefetch_tile(w);                                                                                          \
            dot(0, 4, 6);                                                                                              \
            if (tall) {                                                                                                \
                _tile_loadd(5, x + TILE_ROWS * depth + k, depth);                                                      \
                dot(2, 5, 6);                                                                                          \
            }                                                                                                          \
            if (second) {                                                                                              \
                _tile_loadd(7, w + second, TILE_ROW_BYTES);                                                            \
                prefetch_tile(w + second);                                                                             \
                dot(1, 4, 7);                                                                                          \
                if (tall) dot(3, 5, 7);                                                                                \
            }                                                                                                          \
        }                                                                                                              \
        _tile_stored(0, sums, TILE_ROW_BYTES);                                                                         \
        _tile_stored(1, (char *)sums + TILE_BYTES, TILE_ROW_BYTES);                                                    \
        _tile_stored(2, (char *)sums + 2 * TILE_BYTES, TILE_ROW_BYTES);                                                \
        _tile_stored(3, (char *)sums + 3 * TILE_BYTES, TILE_ROW_BYTES);                                                \
    }
DEFINE_AMX_PANELS(amx_panels_bf16, _tile_dpbf16ps)
DEFINE_AMX_PANELS(amx_panels_int8, _tile_dpbusd)

#endif

#endif
