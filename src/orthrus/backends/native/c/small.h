/* The small work between two matrix products, fused: norms, rotary embedding with the cache write, the gated activation. */

#define LANES 16

#ifdef BFLOAT16
typedef uint16_t VALUE;
static inline float load(VALUE stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline VALUE store(float value) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (VALUE)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float VALUE;
static inline float load(VALUE stored) { return stored; }
static inline VALUE store(float value) { return value; }
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
/* The same for sixteen. */
static inline __m512 load_lanes(const VALUE *x) {
#ifdef BFLOAT16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
#else
    return _mm512_loadu_ps(x);
#endif
}
static inline void store_lanes(VALUE *y, __m512 values) {
#ifdef BFLOAT16
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(values));
#else
    __m512i bits = _mm512_castps_si512(values), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256((__m256i *)y, _mm512_cvtepi32_epi16(bits));
#endif
#else
    _mm512_storeu_ps(y, values);
#endif
}
#endif

/* 1 / sqrt(mean(x^2) + eps), summed in sixteen lanes that are added in order. */
static inline float inverse_rms(const VALUE *x, int64_t size, float eps) {
    float lanes[LANES] = {0};
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    __m512 sums = _mm512_setzero_ps();
    for (; i + LANES <= size; i += LANES) sums = _mm512_add_ps(sums, _mm512_mul_ps(load_lanes(x + i), load_lanes(x + i)));
    _mm512_storeu_ps(lanes, sums);
#endif
    for (; i + LANES <= size; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += load(x[i + l]) * load(x[i + l]);
    for (int l = 0; i + l < size; l++) lanes[l] += load(x[i + l]) * load(x[i + l]);
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

/* x += delta */
static inline void add_row(VALUE *x, const VALUE *delta, int64_t size) {
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + LANES <= size; i += LANES) store_lanes(x + i, _mm512_add_ps(load_lanes(x + i), load_lanes(delta + i)));
#endif
    for (; i < size; i++) x[i] = store(load(x[i]) + load(delta[i]));
}

/* out = x * factor * weight */
static inline void scale_row(const VALUE *x, float factor, const VALUE *weight, VALUE *out, int64_t size) {
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + LANES <= size; i += LANES)
        store_lanes(out + i, _mm512_mul_ps(_mm512_mul_ps(load_lanes(x + i), _mm512_set1_ps(factor)), load_lanes(weight + i)));
#endif
    for (; i < size; i++) out[i] = store(load(x[i]) * factor * load(weight[i]));
}

/* x += delta where there is one; out[n, :] = x[n, :] / rms * weight */
void rms_norm(VALUE *x, const VALUE *delta, const VALUE *weight, VALUE *out, int64_t rows, int64_t size, float eps) {
    DEFAULT_FLOAT_STATE
    for (int64_t n = 0; n < rows; n++, x += size, out += size) {
        if (delta) add_row(x, delta + n * size, size);
        scale_row(x, inverse_rms(x, size, eps), weight, out, size);
    }
}

/* Keys and values are kept within this, NaN included: a key that a row does not see is multiplied by zero. */
static const float CACHE_LIMIT = 1e15f;

static inline float clamp_finite(float x) {
    x = x > -CACHE_LIMIT ? x : -CACHE_LIMIT;
    return x < CACHE_LIMIT ? x : CACHE_LIMIT;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
static inline __m512 clamp_finite_lanes(__m512 x) { /* the second operand is what a comparison with NaN gives */
    return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-CACHE_LIMIT)), _mm512_set1_ps(CACHE_LIMIT));
}
#endif

/* out = x, made finite */
static inline void copy_finite(const VALUE *x, VALUE *out, int64_t size) {
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + LANES <= size; i += LANES) store_lanes(out + i, clamp_finite_lanes(load_lanes(x + i)));
#endif
    for (; i < size; i++) out[i] = store(clamp_finite(load(x[i])));
}

/* One head, optionally normalised, rotated by its position, made finite. */
static inline void rotate(const VALUE *x, const VALUE *norm, const float *cos, const float *sin, VALUE *out, int64_t size,
                          float eps) {
    int64_t half = size / 2;
    float inverse = norm ? inverse_rms(x, size, eps) : 1.0f;
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + LANES <= half; i += LANES) {
        __m512 a = _mm512_mul_ps(load_lanes(x + i), _mm512_set1_ps(inverse));
        __m512 b = _mm512_mul_ps(load_lanes(x + i + half), _mm512_set1_ps(inverse));
        if (norm) a = _mm512_mul_ps(a, load_lanes(norm + i)), b = _mm512_mul_ps(b, load_lanes(norm + i + half));
        __m512 c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
        __m512 c2 = _mm512_loadu_ps(cos + i + half), s2 = _mm512_loadu_ps(sin + i + half);
        store_lanes(out + i, clamp_finite_lanes(_mm512_add_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s))));
        store_lanes(out + i + half, clamp_finite_lanes(_mm512_add_ps(_mm512_mul_ps(b, c2), _mm512_mul_ps(a, s2))));
    }
#endif
    for (; i < half; i++) {
        float a = load(x[i]) * inverse, b = load(x[i + half]) * inverse;
        if (norm) a *= load(norm[i]), b *= load(norm[i + half]);
        out[i] = store(clamp_finite(a * cos[i] + b * sin[i]));
        out[i + half] = store(clamp_finite(b * cos[i + half] + a * sin[i + half]));
    }
}

/* Split qkv [N, (H + 2G) * E]: q rotated to its row of `q` [B * A, H, E], k rotated and v copied to their places in the
 * cache. places [3][N]: row of q, sequence, slot; `cos` and signed `sin` hold a row of E values per position, or per row
 * where there are no positions; sizes: H, G, E, strides of sequences and heads in values. */
static void place_rows(const VALUE *qkv, const VALUE *const *norms, const float *cos, const float *sin,
                       const int64_t *positions, const int64_t *places, VALUE *q, VALUE *keys, VALUE *values, const int64_t *sizes, float eps,
                       int64_t N, int64_t first, int64_t last) {
    int64_t H = sizes[0], G = sizes[1], E = sizes[2];
    for (int64_t n = first; n < last; n++) {
        const VALUE *from = qkv + n * (H + 2 * G) * E;
        int64_t angle = positions ? positions[n] : n;
        const float *c = cos + angle * E, *s = sin + angle * E;
        VALUE *row = q + places[n] * H * E;
        for (int64_t h = 0; h < H; h++, from += E) rotate(from, norms[0], c, s, row + h * E, E, eps);
        int64_t at = places[N + n] * sizes[3] + places[2 * N + n] * E;
        for (int64_t g = 0; g < G; g++, from += E) rotate(from, norms[1], c, s, keys + at + g * sizes[4], E, eps);
        for (int64_t g = 0; g < G; g++, from += E) copy_finite(from, values + at + g * sizes[4], E);
    }
}

void place(const VALUE *qkv, const VALUE *q_norm, const VALUE *k_norm, const float *cos, const float *sin,
           const int64_t *places, VALUE *q, VALUE *keys, VALUE *values, const int64_t *sizes, int64_t N, float eps) {
    DEFAULT_FLOAT_STATE
    const VALUE *norms[2] = {q_norm, k_norm};
    place_rows(qkv, norms, cos, sin, 0, places, q, keys, values, sizes, eps, N, 0, N);
}

/* exp by range reduction and a polynomial (Cephes), accurate to 2 units in the last place, and vectorisable. */
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    float shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
/* The same for sixteen, up to e^80. */
static inline __m512 exponential_lanes(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(80.0f));
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(whole, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, whole);
}
#endif

/* out[i] = silu(x[i]) * x[size + i] for `first` <= i < `last` */
static inline void gate_row(const VALUE *x, VALUE *out, int64_t size, int64_t first, int64_t last) {
    int64_t i = first;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    for (; i + LANES <= last; i += LANES) {
        __m512 g = load_lanes(x + i), up = load_lanes(x + size + i);
        __m512 d = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential_lanes(_mm512_sub_ps(_mm512_setzero_ps(), g)));
        __m512 r = _mm512_rcp14_ps(d); /* 1 / d, made exact to a unit or two by a step of Newton's */
        r = _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.0f)));
        store_lanes(out + i, _mm512_mul_ps(_mm512_mul_ps(g, r), up));
    }
#endif
    for (; i < last; i++) {
        float g = load(x[i]);
        out[i] = store(g / (1.0f + exponential(-g)) * load(x[size + i]));
    }
}

/* The same for every row: x [rows, 2 size], out [rows, size]. */
void gate(const VALUE *x, VALUE *out, int64_t rows, int64_t size) {
    DEFAULT_FLOAT_STATE
    for (int64_t n = 0; n < rows; n++) gate_row(x + 2 * n * size, out + n * size, size, 0, size);
}

/* out[n] = the largest probability of softmax(x[n]), x [rows, size]. */
void largest_probability(const VALUE *x, float *out, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        DEFAULT_FLOAT_STATE
        const VALUE *row = x + n * size;
        float top = -INFINITY, sum = 0;
        int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
        __m512 tops = _mm512_set1_ps(top), sums = _mm512_setzero_ps();
        for (; i + LANES <= size; i += LANES) tops = _mm512_max_ps(tops, load_lanes(row + i));
        top = _mm512_reduce_max_ps(tops);
#endif
        for (; i < size; i++) top = load(row[i]) > top ? load(row[i]) : top;
        i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
        for (; i + LANES <= size; i += LANES)
            sums = _mm512_add_ps(sums, exponential_lanes(_mm512_sub_ps(load_lanes(row + i), _mm512_set1_ps(top))));
        sum = _mm512_reduce_add_ps(sums);
#endif
        for (; i < size; i++) sum += exponential(load(row[i]) - top);
        out[n] = 1.0f / sum;
    }
}
