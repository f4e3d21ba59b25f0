/* Matrix products, accumulated in fp32 in one fixed order over the depth for every row: whatever the number of rows, each
 * is summed alone, so nothing has to be padded or split. `beside` tells how many inputs of an output lie side by side in weights of a
 * depth, 0 if there is no product for it. */

#if defined(__AVX512F__)
/* Weights come from memory once and in order; the more arithmetic there is to each, the less far the processor looks ahead
 * by itself. */
enum { AHEAD = 4096 };
static inline void fetch(const void *weights) { _mm_prefetch((const char *)weights + AHEAD, _MM_HINT_T0); }

/* A number in all lanes, by nothing but a load: what `_mm512_set1_ps` becomes takes a shuffle as well on Zen 4. */
static inline __m512 everywhere(const float *x) {
    __m512i found;
    __asm__("vpbroadcastd %1, %0" : "=v"(found) : "m"(*x));
    return _mm512_castsi512_ps(found);
}
#endif

/* Which of `count` things are thread t's of T. */
static inline void share(int64_t count, int64_t t, int64_t T, int64_t *first, int64_t *last) {
    *first = count * t / T, *last = count * (t + 1) / T;
}

/* Outputs `first` to `last` of a thread's own: whole panels of 32, the last one as long as it is. */
static inline void share_outputs(int64_t outputs, int64_t t, int64_t T, int64_t *first, int64_t *last) {
    share((outputs + 2 * LANES - 1) / (2 * LANES), t, T, first, last);
    *first *= 2 * LANES, *last *= 2 * LANES;
    *last = *last < outputs ? *last : outputs;
}

#ifdef _OPENMP
#define WHICH_THREAD DEFAULT_FLOAT_STATE int64_t t = omp_get_thread_num(), T = omp_get_num_threads();
#else
#define WHICH_THREAD DEFAULT_FLOAT_STATE int64_t t = 0, T = 1;
#endif
#define EVERY_THREAD(work)                                                                                             \
    _Pragma("omp parallel num_threads(threads)") {                                                                     \
        WHICH_THREAD                                                                                                   \
        int64_t first, last;                                                                                           \
        share_outputs(outputs, t, T, &first, &last);                                                                   \
        work;                                                                                                          \
    }

/* Rows in groups of about the same size, each of `most` at most, few enough for the registers: ROWS_OF(their number). */
#define EVERY_ROW(most, CASES)                                                                                         \
    for (int64_t r = 0, taken, groups; r < rows; r += taken) {                                                         \
        groups = (rows - r + most - 1) / most, taken = (rows - r + groups - 1) / groups;                               \
        switch (taken) { CASES }                                                                                       \
    }
#define CASE(count) case count: ROWS_OF(count); break;
#define UP_TO_SIX CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#define UP_TO_EIGHT UP_TO_SIX CASE(7) CASE(8)
#define UP_TO_TWELVE UP_TO_EIGHT CASE(9) CASE(10) CASE(11) CASE(12)
#define UP_TO_SIXTEEN UP_TO_TWELVE CASE(13) CASE(14) CASE(15) CASE(16)

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define IN_PARTS
enum { PANEL = 2 * LANES, CHUNK = 8, MOST_ROWS = 6 };

int64_t beside(int64_t depth) { return use_tiles && depth % 32 == 0 ? 2 : depth % CHUNK ? 0 : CHUNK; }

static inline void finish(__m512 sums, const VALUE *bias, VALUE *y) {
    store_lanes(y, bias ? _mm512_add_ps(sums, load_lanes(bias)) : sums);
}

/* sums[q]: four parts of the sum of each of outputs q, q + 4, q + 8, q + 12. All sixteen to y. */
static inline __attribute__((always_inline)) void finish_parts(const __m512 *sums, const VALUE *bias, VALUE *y) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    a = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), b = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    finish(_mm512_add_ps(a, b), bias, y);
}

/* Eight inputs of a row, for each of the four outputs of a vector of weights. */
static inline __m512bh four_times(const VALUE *x) {
    return (__m512bh)_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)x));
}

/* `rows` (a constant where this is inlined) rows by 16 outputs. Meanwhile `each` bytes come from `ahead` on at every step. */
static inline __attribute__((always_inline)) void panel(const VALUE *x, const VALUE *w, const char *ahead, int64_t each,
                                                        const VALUE *bias, VALUE *y, const int rows, int64_t depth,
                                                        int64_t outputs) {
    __m512 sums[MOST_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[r][q] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += CHUNK, w += CHUNK * LANES, ahead += each) {
        for (int64_t l = 0; l < each; l += 64) _mm_prefetch(ahead + l, _MM_HINT_T0);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512bh values = four_times(x + r * depth + k);
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                sums[r][q] = _mm512_dpbf16_ps(sums[r][q], values, (__m512bh)_mm512_loadu_si512(w + 4 * CHUNK * q));
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) finish_parts(sums[r], bias, y + r * outputs);
}

#define ROWS_OF(count) panel(x + r * depth, w, ahead, r ? 0 : each, bias, y + r * outputs, count, depth, outputs)
/* All rows by 16 outputs. */
static void multiply_panel(const VALUE *x, const VALUE *w, const char *ahead, int64_t each, const VALUE *bias, VALUE *y,
                           int64_t rows, int64_t depth, int64_t outputs) {
    EVERY_ROW(MOST_ROWS, UP_TO_SIX)
}
#undef ROWS_OF

#define FINISH(sums, row, at) finish(_mm512_load_ps(sums), bias ? bias + (at) : 0, y + (row) * outputs + (at))
/* By tiles or by dot products of pairs: outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w packed
 * [outputs / 16][depth / 2][16 outputs][2] for tiles, else [outputs / 16][depth / 8][4][4 outputs, 4 apart][8]. */
static void multiply(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth,
                     int64_t outputs, int64_t first, int64_t last) {
#ifndef NO_TILES
    if (beside(depth) == 2) {
        EVERY_TILE(block_bf16, x, w, 2 * depth, FINISH);
        return;
    }
#endif
    int64_t each = rows > 1 ? CHUNK * LANES * (int64_t)sizeof(VALUE) : 0;
    for (int64_t out = first; out < last; out += LANES) {
        const VALUE *from = w + out * depth;
        multiply_panel(x, from, (const char *)from + AHEAD, each, bias ? bias + out : 0, y + out, rows, depth, outputs);
    }
}

#elif !defined(BFLOAT16) && defined(__AVX512F__)
#define IN_PARTS
enum { PANEL = 2 * LANES, MOST_ROWS = 12 };

int64_t beside(int64_t depth) { return depth > 0; }

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs. */
static inline __attribute__((always_inline)) void panel(const float *x, const float *w, const float *bias, float *y,
                                                        const int rows, int64_t depth, int64_t outputs) {
    __m512 low[MOST_ROWS], high[MOST_ROWS];
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

#define ROWS_OF(count) panel(x + r * depth, weights, add, y + r * outputs + out, count, depth, outputs)
/* By fused multiply-adds: outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w packed
 * [outputs / 32][depth][32 outputs]. */
static void multiply(const float *x, const float *w, const float *bias, float *y, int64_t rows, int64_t depth,
                     int64_t outputs, int64_t first, int64_t last) {
    for (int64_t out = first; out < last; out += PANEL) {
        const float *weights = w + out * depth, *add = bias ? bias + out : 0;
        EVERY_ROW(MOST_ROWS, UP_TO_TWELVE)
    }
}

#else
int64_t beside(int64_t depth) { return 0 * depth; }
#endif

#ifdef IN_PARTS
void linear(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth, int64_t outputs,
            int64_t threads) {
    EVERY_THREAD(multiply(x, w, bias, y, rows, depth, outputs, first, last))
}
#undef ROWS_OF
#endif
