/* Int8 weights [outputs] x int8 activations [rows], each with a scale. Integer sums are exact, so order cannot matter. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
enum { WIDE = 2 * LANES, HIGH = 8, SHIFT = 128 };

int has_linear_int8(void) { return 1; }

/* One row to unsigned bytes around SHIFT; returns its scale. `depth` is a multiple of the lanes. */
static float quantize(const VALUE *x, uint8_t *q, int64_t depth) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t i = 0; i < depth; i += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(load_lanes(x + i)));
    float top = _mm512_reduce_max_ps(most);
    __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    for (int64_t i = 0; i < depth; i += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_lanes(x + i), inverse));
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(SHIFT))));
    }
    return top / 127.0f;
}

static inline void scale_out(__m512i sums, const float *scales, const int32_t *shifts, float scale, const VALUE *bias,
                             VALUE *y) {
    __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_loadu_si512(shifts)));
    whole = _mm512_mul_ps(whole, _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(scale)));
    store_lanes(y, bias ? _mm512_add_ps(whole, load_lanes(bias)) : whole);
}

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs, whose second half lies `next` behind. */
static inline __attribute__((always_inline)) void panel_int8(const uint8_t *q, const float *row_scales, const int8_t *w,
                                                             int64_t next, const float *scales, const int32_t *shifts,
                                                             const VALUE *bias, VALUE *y, const int rows, int64_t depth,
                                                             int64_t outputs) {
    __m512i low[HIGH], high[HIGH];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k += 4, w += 4 * LANES) {
        if (rows > 1) fetch(w), fetch(w + next);
        __m512i w_low = _mm512_loadu_si512(w), w_high = _mm512_loadu_si512(w + next);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q + r * depth + k, 4);
            __m512i value = _mm512_set1_epi32(four);
            low[r] = _mm512_dpbusd_epi32(low[r], value, w_low);
            high[r] = _mm512_dpbusd_epi32(high[r], value, w_high);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        scale_out(low[r], scales, shifts, row_scales[r], bias, y + r * outputs);
        if (next)
            scale_out(high[r], scales + LANES, shifts + LANES, row_scales[r], bias ? bias + LANES : 0,
                      y + r * outputs + LANES);
    }
}

#define ROWS_OF(count)                                                                                                 \
    panel_int8(q + r * depth, row_scales + r, w + out * depth, next, scales + out, shifts + out, bias ? bias + out : 0, \
               y + r * outputs + out, count, depth, outputs)
#define FINISH_INT8(sums, row, at)                                                                                     \
    scale_out(_mm512_load_si512(sums), scales + (at), shifts + (at), row_scales[row], bias ? bias + (at) : 0,         \
              y + (row) * outputs + (at))
/* Outputs `first` to `last` of y [rows, outputs] = q w^T + bias. w packed [outputs / 16][depth / 4][16 outputs][4],
 * `scales` of its rows, `shifts` = 128 times their sums. */
static void multiply_int8(const uint8_t *q, const float *row_scales, const int8_t *w, const float *scales,
                          const int32_t *shifts, const VALUE *bias, VALUE *y, const int64_t *sizes, int64_t first,
                          int64_t last) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2];
#ifndef NO_TILES
    if (use_tiles && depth % STEP == 0) {
        EVERY_TILE(block_int8, q, w, depth, FINISH_INT8);
        return;
    }
#endif
    for (int64_t out = first; out < last; out += WIDE) {
        int64_t next = out + LANES < last ? LANES * depth : 0;
        EVERY_ROW(HIGH, UP_TO_EIGHT)
    }
}
#undef ROWS_OF

/* The whole of it; `q` [rows, depth] and `row_scales` [rows] are room for the quantised rows of x. */
void linear_int8(const VALUE *x, const int8_t *w, const float *scales, const int32_t *shifts, const VALUE *bias, VALUE *y,
                 uint8_t *q, float *row_scales, const int64_t *sizes) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2], threads = sizes[3];
    for (int64_t r = 0; r < rows; r++) row_scales[r] = quantize(x + r * depth, q + r * depth, depth);
    EVERY_THREAD(multiply_int8(q, row_scales, w, scales, shifts, bias, y, sizes, first, last))
}
#else
int has_linear_int8(void) { return 0; }
#endif
