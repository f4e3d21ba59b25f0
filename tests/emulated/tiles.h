/* The eight tiles of a thread, and the AMX instructions on them: see immintrin.h. */
#ifndef EMULATED_TILES_H
#define EMULATED_TILES_H

#include <stdint.h>
#include <string.h>

typedef struct {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config;
    uint8_t rows[8][16][64];
} Tiles;

/* One in the process: the libraries are linked with a definition. */
extern __thread Tiles tiles;

EMULATED void must_hold(int holds) {
    if (!holds) __builtin_trap();
}
EMULATED void emulated_tile_release(void) { memset(&tiles, 0, sizeof tiles); }
EMULATED void emulated_tile_loadconfig(const void *config) {
    emulated_tile_release();
    memcpy(&tiles.config, config, sizeof tiles.config);
    must_hold(tiles.config.palette == 1);
    for (int t = 0; t < 8; t++) {
        must_hold(tiles.config.rows[t] <= 16 && tiles.config.row_bytes[t] <= 64);
        must_hold(!tiles.config.rows[t] == !tiles.config.row_bytes[t]);
    }
}
EMULATED void emulated_tile_zero(int tile) {
    must_hold(tiles.config.rows[tile]);
    memset(tiles.rows[tile], 0, sizeof tiles.rows[tile]);
}
EMULATED void emulated_tile_loadd(int tile, const void *from, int64_t stride) {
    emulated_tile_zero(tile);
    for (int r = 0; r < tiles.config.rows[tile]; r++)
        memcpy(tiles.rows[tile][r], (const char *)from + r * stride, tiles.config.row_bytes[tile]);
}
EMULATED void emulated_tile_stored(int tile, void *to, int64_t stride) {
    must_hold(tiles.config.rows[tile]);
    for (int r = 0; r < tiles.config.rows[tile]; r++)
        memcpy((char *)to + r * stride, tiles.rows[tile][r], tiles.config.row_bytes[tile]);
}

/* sums += a b: `statement` adds the product of the four bytes x of a row of a and y of a column of b to the sum s. */
#define TILE_PRODUCT(name, sum_t, a_t, b_t, statement)                                                                 \
    static __attribute__((unused, noinline)) void name(int sums, int a, int b) {                                       \
        int rows = tiles.config.rows[sums], columns = tiles.config.row_bytes[sums] / 4, depth = tiles.config.rows[b];  \
        must_hold(rows && rows == tiles.config.rows[a] && depth == tiles.config.row_bytes[a] / 4);                     \
        must_hold(tiles.config.row_bytes[b] / 4 == columns);                                                           \
        for (int r = 0; r < rows; r++)                                                                                 \
            for (int c = 0; c < columns; c++) {                                                                        \
                sum_t s;                                                                                               \
                memcpy(&s, tiles.rows[sums][r] + 4 * c, 4);                                                            \
                for (int k = 0; k < depth; k++) {                                                                      \
                    a_t x[4 / sizeof(a_t)];                                                                            \
                    b_t y[4 / sizeof(b_t)];                                                                            \
                    memcpy(x, tiles.rows[a][r] + 4 * k, 4);                                                            \
                    memcpy(y, tiles.rows[b][k] + 4 * c, 4);                                                            \
                    statement;                                                                                         \
                }                                                                                                      \
                memcpy(tiles.rows[sums][r] + 4 * c, &s, 4);                                                            \
            }                                                                                                          \
    }
#define ADD_BYTES for (int i = 0; i < 4; i++) s += (int)x[i] * (int)y[i]
TILE_PRODUCT(emulated_tile_dpbf16ps, float, uint16_t, uint16_t, s = add_pair(s, x, y))
TILE_PRODUCT(emulated_tile_dpbusd, int32_t, uint8_t, int8_t, ADD_BYTES)
TILE_PRODUCT(emulated_tile_dpbsud, int32_t, int8_t, uint8_t, ADD_BYTES)

#endif
