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
#define WHICH_THREAD int64_t t = omp_get_thread_num(), T = omp_get_num_threads();
#else
#define WHICH_THREAD int64_t t = 0, T = 1;
#endif
#define EVERY_THREAD(work)                                                                                             \
    _Pragma("omp parallel num_threads(threads)") {                                                                     \
        WHICH_THREAD                                                                                                   \
        int64_t first, last;                                                                                           \
        share_outputs(outputs, t, T, &first, &last);                                                                   \
        work;                                                                                                          \
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

#if defined(BFLOAT16) && defined(__AVX512BF16__)
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
#define FINISH(sums, row, at) finish(_mm512_load_ps(sums), bias ? bias + (at) : 0, y + (row) * outputs + (at))
/* By tiles or by dot products of pairs: outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w packed
 * [outputs / 16][depth / 2][16 outputs][2]. */
static void multiply(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth,
                     int64_t outputs, int64_t first, int64_t last) {
#ifndef NO_TILES
    if (use_tiles && depth % (STEP / 2) == 0) {
        EVERY_TILE(block_bf16, x, w, 2 * depth, FINISH);
        return;
    }
#endif
    for (int64_t out = first; out < last; out += PANEL) {
        const VALUE *weights = w + out * depth, *add = bias ? bias + out : 0;
        int64_t next = out + LANES < last ? LANES * depth : 0;
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
    EVERY_THREAD(multiply(x, w, bias, y, rows, depth, outputs, first, last))
}
#undef ROWS_OF
#endif
