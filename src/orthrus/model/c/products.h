/* Matrix products, accumulated in fp32 in one fixed order over the depth for every row: whatever the number of rows, each
 * is summed alone, so nothing has to be padded or split. `has_linear` tells of what its depth must be a multiple in this build, 0 if it has none. */

#if defined(__AVX512F__)
/* Weights come from memory once and in order; the more arithmetic there is to each, the less far the processor looks ahead
 * by itself. */
static inline void fetch(const void *weights) { _mm_prefetch((const char *)weights + 4096, _MM_HINT_T0); }
#endif

/* How many of the rows that are left go through a panel together: few enough for the registers, alike where it divides. */
static inline int64_t together(int64_t left) {
    return left >= 24 || left == 12 ? 12 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

#define EVERY_ROW                                                                                                      \
    for (int64_t r = 0, taken; r < rows; r += taken) {                                                                 \
        taken = together(rows - r);                                                                                    \
        ROW_POINTERS                                                                                                   \
        if (taken == 12) ROWS_OF(12);                                                                                  \
        else if (taken == 8) ROWS_OF(8);                                                                               \
        else if (taken == 4) ROWS_OF(4);                                                                               \
        else if (taken == 2) ROWS_OF(2);                                                                               \
        else ROWS_OF(1);                                                                                               \
    }
#define ROW_POINTERS                                                                                                   \
    const VALUE *from = x + r * depth;                                                                                 \
    VALUE *to = y + r * outputs + out;

#if defined(BFLOAT16) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, ROWS = 16, DEPTH = 32 };

int has_linear(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? DEPTH : 0; }

/* Tiles 0-3 are sums (rows 0-15 and 16-31 by two groups of outputs), 4-5 activations, 6-7 weights. */
static void configure(int64_t first, int64_t second) {
    struct { uint8_t palette, start, reserved[14]; uint16_t width[16]; uint8_t rows[16]; } config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    int64_t rows[8] = {first, first, second, second, first, second, DEPTH / 2, DEPTH / 2};
    for (int t = 0; t < 8; t++) config.width[t] = 64, config.rows[t] = (uint8_t)(rows[t] ? rows[t] : 1);
    _tile_loadconfig(&config);
}

static void finish(const float *sums, const VALUE *bias, VALUE *y, int64_t rows, int64_t outputs) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < ROWS; o++)
            y[r * outputs + o] = store(sums[r * ROWS + o] + (bias ? load(bias[o]) : 0.0f));
}

/* Up to 32 rows by 16 or 32 outputs; `w` points at the weight tiles of the first group, the second lies `next` behind. */
static void block(const VALUE *x, const VALUE *w, int64_t next, int64_t rows, int64_t depth, float *sums) {
    int64_t stride = depth * (int64_t)sizeof(VALUE), tall = rows > ROWS, wide = next > 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += DEPTH, w += DEPTH * ROWS) {
        _tile_loadd(4, x + k, stride);
        _tile_loadd(6, w, 64);
        for (int l = 0; l < 16; l++) _mm_prefetch((const char *)(w + 8 * DEPTH * ROWS) + 64 * l, _MM_HINT_T0);
        _tile_dpbf16ps(0, 4, 6);
        if (tall) {
            _tile_loadd(5, x + ROWS * depth + k, stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (wide) {
            _tile_loadd(7, w + next, 64);
            for (int l = 0; l < 16; l++) _mm_prefetch((const char *)(w + next + 8 * DEPTH * ROWS) + 64 * l, _MM_HINT_T0);
            _tile_dpbf16ps(1, 4, 7);
            if (tall) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

/* On AMX tiles: y [rows, outputs] = x [rows, depth] w^T + bias; w packed [outputs / 16][depth / 2][16 outputs][2]. */
void linear(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth, int64_t outputs,
                 int64_t threads) {
    int64_t groups = outputs / ROWS, pairs = (groups + 1) / 2;
#pragma omp parallel num_threads(threads)
    {
        float sums[4 * 256] __attribute__((aligned(64)));
        int64_t configured = -1;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; pair++) {
            int64_t next = 2 * pair + 1 < groups ? ROWS * depth : 0, out = 2 * pair * ROWS;
            for (int64_t r = 0; r < rows; r += 2 * ROWS) {
                int64_t left = rows - r, first = left < ROWS ? left : ROWS;
                int64_t second = left <= ROWS ? 0 : (left < 2 * ROWS ? left - ROWS : ROWS);
                if (configured != first * 64 + second) configure(first, second), configured = first * 64 + second;
                block(x + r * depth, w + out * depth, next, first + second, depth, sums);
                VALUE *to = y + r * outputs + out;
                finish(sums, bias ? bias + out : 0, to, first, outputs);
                if (second) finish(sums + 512, bias ? bias + out : 0, to + ROWS * outputs, second, outputs);
                if (next) finish(sums + 256, bias ? bias + out + ROWS : 0, to + ROWS, first, outputs);
                if (next && second)
                    finish(sums + 768, bias ? bias + out + ROWS : 0, to + ROWS * outputs + ROWS, second, outputs);
            }
        }
        _tile_release();
    }
}
#elif defined(BFLOAT16) && defined(__AVX512BF16__)
#define IN_PARTS
enum { PANEL = 2 * LANES, TALL = 12 };

int has_linear(void) { return 2; }

static inline void finish(__m512 sums, const VALUE *bias, VALUE *y) {
    store_lanes(y, bias ? _mm512_add_ps(sums, load_lanes(bias)) : sums);
}

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs, whose second half lies `next` behind. */
static inline __attribute__((always_inline)) void panel(const VALUE *x, const VALUE *w, int64_t next, const VALUE *bias,
                                                        VALUE *y, const int rows, int64_t depth, int64_t outputs) {
    __m512 low[TALL], high[TALL];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2, w += PANEL) {
        if (rows > 1) fetch(w), fetch(w + next);
        __m512bh w_low = (__m512bh)_mm512_loadu_si512(w), w_high = (__m512bh)_mm512_loadu_si512(w + next);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * depth + k, 4);
            __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            low[r] = _mm512_dpbf16_ps(low[r], value, w_low);
            high[r] = _mm512_dpbf16_ps(high[r], value, w_high);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        finish(low[r], bias, y + r * outputs);
        if (next) finish(high[r], bias ? bias + LANES : 0, y + r * outputs + LANES);
    }
}

#define ROWS_OF(count) panel(from, weights, next, add, to, count, depth, outputs)
/* By dot products of pairs: outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w packed as for
 * tiles. */
static void multiply(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth,
                     int64_t outputs, int64_t first, int64_t last) {
    for (int64_t out = first; out < last; out += PANEL) {
        const VALUE *weights = w + out * depth, *add = bias ? bias + out : 0;
        int64_t next = out + LANES < outputs ? LANES * depth : 0;
        EVERY_ROW
    }
}

#elif !defined(BFLOAT16) && defined(__AVX512F__)
#define IN_PARTS
enum { PANEL = 2 * LANES, TALL = 12 };

int has_linear(void) { return 1; }

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs. */
static inline __attribute__((always_inline)) void panel(const float *x, const float *w, const float *bias, float *y,
                                                        const int rows, int64_t depth, int64_t outputs) {
    __m512 low[TALL], high[TALL];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++, w += PANEL) {
        if (rows > 1) fetch(w), fetch(w + LANES);
        __m512 w_low = _mm512_loadu_ps(w), w_high = _mm512_loadu_ps(w + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[r * depth + k]);
            low[r] = _mm512_fmadd_ps(value, w_low, low[r]);
            high[r] = _mm512_fmadd_ps(value, w_high, high[r]);
        }
    }
    __m512 b_low = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    __m512 b_high = bias ? _mm512_loadu_ps(bias + LANES) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(y + r * outputs, _mm512_add_ps(low[r], b_low));
        _mm512_storeu_ps(y + r * outputs + LANES, _mm512_add_ps(high[r], b_high));
    }
}

#define ROWS_OF(count) panel(from, weights, add, to, count, depth, outputs)
/* By fused multiply-adds: outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w packed
 * [outputs / 32][depth][32 outputs]. */
static void multiply(const float *x, const float *w, const float *bias, float *y, int64_t rows, int64_t depth,
                     int64_t outputs, int64_t first, int64_t last) {
    for (int64_t out = first; out < last; out += PANEL) {
        const float *weights = w + out * depth, *add = bias ? bias + out : 0;
        EVERY_ROW
    }
}

#else
int has_linear(void) { return 0; }
#endif

#ifdef IN_PARTS
void linear(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth, int64_t outputs,
            int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t out = 0; out < outputs; out += PANEL) multiply(x, w, bias, y, rows, depth, outputs, out, out + PANEL);
}
#undef ROWS_OF
#endif
