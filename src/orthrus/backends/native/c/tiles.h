/* Matrix tiles (AMX): up to 32 rows by 32 outputs at a time. A step takes 64 bytes of every row and 1 KiB of each of two
 * groups of 16 outputs, whatever the type of the numbers in them. */
#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, ROWS = 16, STEP = 64, TILE = 1024 };

int use_tiles = 0; /* whether products go by tiles; without, they have other kernels */

/* Asks the system for tiles, once; whether it gives them. */
int has_tiles(void) { return use_tiles = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

struct tiles { uint8_t palette, start, reserved[14]; uint16_t width[16]; uint8_t rows[16]; };

/* Tiles 0-3 are sums (rows 0-15 and 16-31 by two groups of outputs), 4-5 activations, 6-7 weights. */
static void configure(int64_t first, int64_t second) {
    struct tiles config = {.palette = 1};
    int64_t rows[8] = {first, first, second, second, first, second, ROWS, ROWS};
    for (int t = 0; t < 8; t++) config.width[t] = STEP, config.rows[t] = (uint8_t)(rows[t] ? rows[t] : 1);
    _tile_loadconfig(&config);
}

static inline void fetch_tile(const char *weights) {
    for (int l = 0; l < TILE; l += 64) _mm_prefetch(weights + 4 * TILE + l, _MM_HINT_T0);
}

/* sums [2][2][16][16] of up to 32 rows by 16 or 32 outputs; a row has `depth` bytes, `w` points at the tiles of the first
 * group of outputs, those of the second lie `next` bytes behind, 0 if there is none. */
#define BLOCK(name, multiply_add)                                                                                      \
    static inline void name(const char *x, const char *w, int64_t next, int64_t rows, int64_t depth, void *sums) {     \
        int64_t tall = rows > ROWS;                                                                                    \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        for (int64_t k = 0; k < depth; k += STEP, w += TILE) {                                                         \
            _tile_loadd(4, x + k, depth);                                                                              \
            _tile_loadd(6, w, STEP);                                                                                   \
            fetch_tile(w);                                                                                             \
            multiply_add(0, 4, 6);                                                                                     \
            if (tall) {                                                                                                \
                _tile_loadd(5, x + ROWS * depth + k, depth);                                                           \
                multiply_add(2, 5, 6);                                                                                 \
            }                                                                                                          \
            if (next) {                                                                                                \
                _tile_loadd(7, w + next, STEP);                                                                        \
                fetch_tile(w + next);                                                                                  \
                multiply_add(1, 4, 7);                                                                                 \
                if (tall) multiply_add(3, 5, 7);                                                                       \
            }                                                                                                          \
        }                                                                                                              \
        _tile_stored(0, sums, STEP);                                                                                   \
        _tile_stored(1, (char *)sums + TILE, STEP);                                                                    \
        _tile_stored(2, (char *)sums + 2 * TILE, STEP);                                                                \
        _tile_stored(3, (char *)sums + 3 * TILE, STEP);                                                                \
    }
BLOCK(block_bf16, _tile_dpbf16ps)
BLOCK(block_int8, _tile_dpbusd)

/* Every row of `sums` to its outputs: FINISH(sums of 16 outputs, row, first output) for outputs `out` and on. */
#define EVERY_TILE(block, x, w, depth, FINISH)                                                                         \
    do {                                                                                                               \
        char sums[4 * TILE] __attribute__((aligned(64)));                                                              \
        int64_t configured = -1;                                                                                       \
        for (int64_t out = first; out < last; out += 2 * ROWS) {                                                       \
            int64_t next = out + ROWS < last ? ROWS * (depth) : 0;                                                  \
            for (int64_t r = 0; r < rows; r += 2 * ROWS) {                                                             \
                int64_t left = rows - r < 2 * ROWS ? rows - r : 2 * ROWS, high = left < ROWS ? left : ROWS;            \
                if (configured != left) configure(high, left - high), configured = left;                               \
                block((const char *)(x) + r * (depth), (const char *)(w) + out * (depth), next, left, depth, sums);    \
                for (int64_t i = 0; i < left; i++) {                                                                   \
                    const char *found = sums + i / ROWS * 2 * TILE + i % ROWS * STEP;                                  \
                    FINISH(found, r + i, out);                                                                         \
                    if (next) FINISH(found + TILE, r + i, out + ROWS);                                                 \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        _tile_release();                                                                                               \
    } while (0)
#else
int use_tiles = 0;
int has_tiles(void) { return 0; }
#define NO_TILES
#endif
