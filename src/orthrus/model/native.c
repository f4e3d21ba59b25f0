/* The small work between two matrix products, fused: norms, rotary embedding with the cache write, the gated activation.
 *
 * Every row is computed alone, in one fixed order, so its bits cannot depend on the rows beside it. All arithmetic is
 * fp32; VALUE is how numbers are stored. Compiled on the user's machine, once per type: see native.py.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* 1 / sqrt(mean(x^2) + eps), summed in sixteen lanes that are added in order. */
static inline float inverse_rms(const VALUE *x, int64_t size, float eps) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += load(x[i + l]) * load(x[i + l]);
    for (int l = 0; i + l < size; l++) lanes[l] += load(x[i + l]) * load(x[i + l]);
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

/* x += delta where there is one; out[n, :] = x[n, :] / rms * weight */
void rms_norm(VALUE *x, const VALUE *delta, const VALUE *weight, VALUE *out, int64_t rows, int64_t size, float eps) {
    if (delta)
        for (int64_t i = 0; i < rows * size; i++) x[i] = store(load(x[i]) + load(delta[i]));
    for (int64_t n = 0; n < rows; n++, x += size, out += size) {
        float inverse = inverse_rms(x, size, eps);
        for (int64_t i = 0; i < size; i++) out[i] = store(load(x[i]) * inverse * load(weight[i]));
    }
}

/* One head, optionally normalised, rotated by its position. */
static inline void rotate(const VALUE *x, const VALUE *norm, const float *cos, const float *sin, VALUE *out, int64_t size,
                          float eps) {
    int64_t half = size / 2;
    float inverse = norm ? inverse_rms(x, size, eps) : 1.0f;
    for (int64_t i = 0; i < half; i++) {
        float a = load(x[i]) * inverse, b = load(x[i + half]) * inverse;
        if (norm) a *= load(norm[i]), b *= load(norm[i + half]);
        out[i] = store(a * cos[i] + b * sin[i]);
        out[i + half] = store(b * cos[i + half] + a * sin[i + half]);
    }
}

/* Split qkv [N, (H + 2G) * E]: q rotated to its row of `q` [B * A, H, E], k rotated and v copied to their places in the
 * cache. `cos` and signed `sin` hold a row of E values per row; row n belongs to sequence rows[n] / A; strides count
 * values. */
void place(const VALUE *qkv, const VALUE *q_norm, const VALUE *k_norm, const float *cos, const float *sin,
           const int64_t *rows, const int64_t *slots, VALUE *q, VALUE *keys, VALUE *values, const int64_t *sizes,
           float eps) {
    int64_t N = sizes[0], A = sizes[1], H = sizes[2], G = sizes[3], E = sizes[4];
    int64_t sequence_stride = sizes[5], head_stride = sizes[6];
    for (int64_t n = 0; n < N; n++, cos += E, sin += E) {
        VALUE *row = q + rows[n] * H * E;
        for (int64_t h = 0; h < H; h++, qkv += E) rotate(qkv, q_norm, cos, sin, row + h * E, E, eps);
        int64_t at = rows[n] / A * sequence_stride + slots[n] * E;
        for (int64_t g = 0; g < G; g++, qkv += E) rotate(qkv, k_norm, cos, sin, keys + at + g * head_stride, E, eps);
        for (int64_t g = 0; g < G; g++, qkv += E) memcpy(values + at + g * head_stride, qkv, E * sizeof(VALUE));
    }
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

/* out[n, i] = silu(x[n, i]) * x[n, size + i] */
void gate(const VALUE *x, VALUE *out, int64_t rows, int64_t size) {
    for (int64_t n = 0; n < rows; n++, x += 2 * size, out += size)
        for (int64_t i = 0; i < size; i++) {
            float g = load(x[i]);
            out[i] = store(g / (1.0f + exponential(-g)) * load(x[size + i]));
        }
}

/* What training adds. Rows are shared out over threads; each is still computed alone. */

/* Backward of rms_norm towards x: (g w - x mean(g w x) / ms) / rms. */
void rms_norm_backward(const VALUE *x, const VALUE *weight, const VALUE *grad, VALUE *out, int64_t rows, int64_t size,
                       float eps, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        const VALUE *a = x + n * size, *g = grad + n * size;
        float inverse = inverse_rms(a, size, eps), lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += load(g[i + l]) * load(weight[i + l]) * load(a[i + l]);
        for (int l = 0; i + l < size; l++) lanes[l] += load(g[i + l]) * load(weight[i + l]) * load(a[i + l]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        float shrink = inverse * inverse * inverse * dot / (float)size;
        for (i = 0; i < size; i++)
            out[n * size + i] = store(load(g[i]) * load(weight[i]) * inverse - load(a[i]) * shrink);
    }
}

/* Backward of gate: x [rows, 2 size], grad [rows, size] to out [rows, 2 size]. */
void gate_backward(const VALUE *x, const VALUE *grad, VALUE *out, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        const VALUE *a = x + 2 * n * size;
        VALUE *to = out + 2 * n * size;
        for (int64_t i = 0; i < size; i++) {
            float g = load(a[i]), d = load(grad[n * size + i]), sigmoid = 1.0f / (1.0f + exponential(-g));
            to[i] = store(d * load(a[size + i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
            to[size + i] = store(d * g * sigmoid);
        }
    }
}

/* Rotate x [rows, heads, size], rows `stride` values apart, to a dense `out`; `direction` -1 is the backward. */
void rotate_rows(const VALUE *x, const float *cos, const float *sin, VALUE *out, const int64_t *sizes, float direction,
                 int64_t threads) {
    int64_t rows = sizes[0], heads = sizes[1], size = sizes[2], stride = sizes[3], half = size / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++)
        for (int64_t h = 0; h < heads; h++) {
            const VALUE *from = x + n * stride + h * size;
            const float *c = cos + n * size, *s = sin + n * size;
            VALUE *to = out + (n * heads + h) * size;
            for (int64_t i = 0; i < half; i++) {
                float a = load(from[i]), b = load(from[i + half]);
                to[i] = store(a * c[i] + direction * b * s[i]);
                to[i + half] = store(b * c[i + half] + direction * a * s[i + half]);
            }
        }
}

/* x to exp(x - top), `top` its largest and `sum` the sum of the results; the size is a multiple of LANES. */
static inline void exponentials(float *x, int64_t size, float *top, float *sum) {
    float most[LANES], lanes[LANES] = {0};
    for (int l = 0; l < LANES; l++) most[l] = x[l];
    for (int64_t i = LANES; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) most[l] = x[i + l] > most[l] ? x[i + l] : most[l];
    *top = most[0], *sum = 0;
    for (int l = 1; l < LANES; l++) *top = most[l] > *top ? most[l] : *top;
    for (int64_t i = 0; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += x[i + l] = exponential(x[i + l] - *top);
    for (int l = 0; l < LANES; l++) *sum += lanes[l];
}

/* Forward KL of each row's student from its teacher, logits [rows, size], size a multiple of LANES; the student's logits
 * become the gradient q - p. */
void forward_kl(VALUE *student, const VALUE *teacher, float *losses, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        float *q = malloc(2 * size * sizeof(float)), *p = q + size;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            VALUE *s = student + n * size;
            const VALUE *t = teacher + n * size;
            for (int64_t i = 0; i < size; i++) q[i] = load(s[i]), p[i] = load(t[i]);
            float top_q, sum_q, top_p, sum_p, lanes[LANES] = {0}, gap = 0;
            exponentials(q, size, &top_q, &sum_q);
            exponentials(p, size, &top_p, &sum_p);
            for (int64_t i = 0; i < size; i += LANES)
                for (int l = 0; l < LANES; l++) lanes[l] += p[i + l] * (load(t[i + l]) - load(s[i + l]));
            for (int l = 0; l < LANES; l++) gap += lanes[l];
            losses[n] = gap / sum_p + (top_q + logf(sum_q)) - (top_p + logf(sum_p));
            float share_q = 1.0f / sum_q, share_p = 1.0f / sum_p;
            for (int64_t i = 0; i < size; i++) s[i] = store(q[i] * share_q - p[i] * share_p);
        }
        free(q);
    }
}

/* One softmax over two tensors in place: scores of the text before a root, of which `seen[s]` count, and of the block
 * itself. past [groups, blocks, rows, text], own [groups, blocks, rows, block]. */
void block_softmax(VALUE *past, VALUE *own, const int64_t *seen, const int64_t *sizes, float scale, int64_t threads) {
    int64_t blocks = sizes[1], rows = sizes[2], text = sizes[3], block = sizes[4];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < sizes[0] * blocks * rows; n++) {
        VALUE *a = past + n * text, *b = own + n * block;
        int64_t visible = seen[n / rows % blocks];
        int64_t count = (visible + block + LANES - 1) / LANES * LANES;
        float scores[text + block + LANES], top, sum;
        for (int64_t i = 0; i < visible; i++) scores[i] = load(a[i]) * scale;
        for (int64_t i = 0; i < block; i++) scores[visible + i] = load(b[i]) * scale;
        for (int64_t i = visible + block; i < count; i++) scores[i] = -INFINITY;
        exponentials(scores, count, &top, &sum);
        float share = 1.0f / sum;
        for (int64_t i = 0; i < visible; i++) a[i] = store(scores[i] * share);
        memset(a + visible, 0, (text - visible) * sizeof(VALUE));
        for (int64_t i = 0; i < block; i++) b[i] = store(scores[visible + i] * share);
    }
}

/* Its backward: gradients of the weights, in place, to gradients of the unscaled scores. */
void block_softmax_backward(const VALUE *past, const VALUE *own, VALUE *grad_past, VALUE *grad_own, const int64_t *sizes,
                            float scale, int64_t threads) {
    int64_t text = sizes[3], block = sizes[4];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < sizes[0] * sizes[1] * sizes[2]; n++) {
        const VALUE *a = past + n * text, *b = own + n * block;
        VALUE *da = grad_past + n * text, *db = grad_own + n * block;
        float lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= text; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += load(a[i + l]) * load(da[i + l]);
        for (int l = 0; i + l < text; l++) lanes[l] += load(a[i + l]) * load(da[i + l]);
        for (i = 0; i < block; i++) lanes[i % LANES] += load(b[i]) * load(db[i]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        for (i = 0; i < text; i++) da[i] = store(load(a[i]) * (load(da[i]) - dot) * scale);
        for (i = 0; i < block; i++) db[i] = store(load(b[i]) * (load(db[i]) - dot) * scale);
    }
}

/* Matrix products, accumulated in fp32 in one fixed order over the depth for every row: whatever the number of rows, each
 * is summed alone, so nothing has to be padded or split. `has_linear` tells whether this build has one. */
#if defined(BFLOAT16) && defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, ROWS = 16, DEPTH = 32 };

int has_linear(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

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

/* On AMX tiles: y [rows, outputs] = x [rows, depth] w^T + bias; w packed [outputs / 16][depth / 32][16 pairs][16 outputs][2]. */
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
#include <immintrin.h>

enum { PANEL = 2 * LANES, TALL = 12 };

int has_linear(void) { return 1; }

static inline void finish(__m512 sums, const VALUE *bias, VALUE *y) {
    float values[LANES];
    _mm512_storeu_ps(values, sums);
    for (int o = 0; o < LANES; o++) y[o] = store(values[o] + (bias ? load(bias[o]) : 0.0f));
}

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs, whose second half lies `next` behind. */
static inline __attribute__((always_inline)) void panel(const VALUE *x, const VALUE *w, int64_t next, const VALUE *bias,
                                                        VALUE *y, const int rows, int64_t depth, int64_t outputs) {
    __m512 low[TALL], high[TALL];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2, w += PANEL) {
        __m512bh w_low = (__m512bh)_mm512_loadu_si512(w), w_high = (__m512bh)_mm512_loadu_si512(w + next);
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * depth + k, 4);
            __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            low[r] = _mm512_dpbf16_ps(low[r], value, w_low);
            high[r] = _mm512_dpbf16_ps(high[r], value, w_high);
        }
    }
    for (int r = 0; r < rows; r++) {
        finish(low[r], bias, y + r * outputs);
        if (next) finish(high[r], bias ? bias + LANES : 0, y + r * outputs + LANES);
    }
}

/* By dot products of pairs: y [rows, outputs] = x [rows, depth] w^T + bias; w packed as for tiles. */
void linear(const VALUE *x, const VALUE *w, const VALUE *bias, VALUE *y, int64_t rows, int64_t depth, int64_t outputs,
            int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t out = 0; out < outputs; out += PANEL) {
        const VALUE *weights = w + out * depth, *add = bias ? bias + out : 0;
        int64_t r = 0, next = out + LANES < outputs ? LANES * depth : 0;
        VALUE *to = y + out;
        for (; r + TALL <= rows; r += TALL) panel(x + r * depth, weights, next, add, to + r * outputs, TALL, depth, outputs);
        for (; r + 4 <= rows; r += 4) panel(x + r * depth, weights, next, add, to + r * outputs, 4, depth, outputs);
        for (; r + 2 <= rows; r += 2) panel(x + r * depth, weights, next, add, to + r * outputs, 2, depth, outputs);
        for (; r < rows; r++) panel(x + r * depth, weights, next, add, to + r * outputs, 1, depth, outputs);
    }
}
#elif !defined(BFLOAT16) && defined(__AVX512F__)
#include <immintrin.h>

enum { PANEL = 2 * LANES, TALL = 8 };

int has_linear(void) { return 1; }

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs. */
static inline __attribute__((always_inline)) void panel(const float *x, const float *w, const float *bias, float *y,
                                                        const int rows, int64_t depth, int64_t outputs) {
    __m512 low[TALL], high[TALL];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++, w += PANEL) {
        __m512 w_low = _mm512_loadu_ps(w), w_high = _mm512_loadu_ps(w + LANES);
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_set1_ps(x[r * depth + k]);
            low[r] = _mm512_fmadd_ps(value, w_low, low[r]);
            high[r] = _mm512_fmadd_ps(value, w_high, high[r]);
        }
    }
    __m512 b_low = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    __m512 b_high = bias ? _mm512_loadu_ps(bias + LANES) : _mm512_setzero_ps();
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(y + r * outputs, _mm512_add_ps(low[r], b_low));
        _mm512_storeu_ps(y + r * outputs + LANES, _mm512_add_ps(high[r], b_high));
    }
}

/* By fused multiply-adds: y [rows, outputs] = x [rows, depth] w^T + bias; w packed [outputs / 32][depth][32 outputs]. */
void linear(const float *x, const float *w, const float *bias, float *y, int64_t rows, int64_t depth, int64_t outputs,
            int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t out = 0; out < outputs; out += PANEL) {
        const float *weights = w + out * depth, *add = bias ? bias + out : 0;
        int64_t r = 0;
        for (; r + TALL <= rows; r += TALL) panel(x + r * depth, weights, add, y + r * outputs + out, TALL, depth, outputs);
        for (; r + 4 <= rows; r += 4) panel(x + r * depth, weights, add, y + r * outputs + out, 4, depth, outputs);
        for (; r + 2 <= rows; r += 2) panel(x + r * depth, weights, add, y + r * outputs + out, 2, depth, outputs);
        for (; r < rows; r++) panel(x + r * depth, weights, add, y + r * outputs + out, 1, depth, outputs);
    }
}
#else
int has_linear(void) { return 0; }
#endif

/* Int8 weights [outputs] x int8 activations [rows], each with a scale. Integer sums are exact, so order cannot matter. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

enum { WIDE = 2 * LANES, HIGH = 12, SHIFT = 128 };

int has_linear_int8(void) { return 1; }

static inline __m512 load_lanes(const VALUE *x) {
#ifdef BFLOAT16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
#else
    return _mm512_loadu_ps(x);
#endif
}

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
    float values[LANES];
    __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_loadu_si512(shifts)));
    _mm512_storeu_ps(values, _mm512_mul_ps(whole, _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(scale))));
    for (int o = 0; o < LANES; o++) y[o] = store(values[o] + (bias ? load(bias[o]) : 0.0f));
}

/* `rows` (a constant where this is inlined) rows by one panel of 32 outputs, whose second half lies `next` behind. */
static inline __attribute__((always_inline)) void panel_int8(const uint8_t *q, const float *row_scales, const int8_t *w,
                                                             int64_t next, const float *scales, const int32_t *shifts,
                                                             const VALUE *bias, VALUE *y, const int rows, int64_t depth,
                                                             int64_t outputs) {
    __m512i low[HIGH], high[HIGH];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k += 4, w += 4 * LANES) {
        __m512i w_low = _mm512_loadu_si512(w), w_high = _mm512_loadu_si512(w + next);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q + r * depth + k, 4);
            __m512i value = _mm512_set1_epi32(four);
            low[r] = _mm512_dpbusd_epi32(low[r], value, w_low);
            high[r] = _mm512_dpbusd_epi32(high[r], value, w_high);
        }
    }
    for (int r = 0; r < rows; r++) {
        scale_out(low[r], scales, shifts, row_scales[r], bias, y + r * outputs);
        if (next)
            scale_out(high[r], scales + LANES, shifts + LANES, row_scales[r], bias ? bias + LANES : 0,
                      y + r * outputs + LANES);
    }
}

/* y [rows, outputs] = x [rows, depth] w^T + bias. w packed [outputs / 16][depth / 4][16 outputs][4], `scales` of its rows,
 * `shifts` = 128 times their sums; `q` [rows, depth] and `row_scales` [rows] are room for the quantised rows. */
void linear_int8(const VALUE *x, const int8_t *w, const float *scales, const int32_t *shifts, const VALUE *bias, VALUE *y,
                 uint8_t *q, float *row_scales, const int64_t *sizes) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2], threads = sizes[3];
    for (int64_t r = 0; r < rows; r++) row_scales[r] = quantize(x + r * depth, q + r * depth, depth);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t out = 0; out < outputs; out += WIDE) {
        int64_t r = 0, next = out + LANES < outputs ? LANES * depth : 0;
#define ROWS_OF(count)                                                                                                  \
    for (; r + count <= rows; r += count)                                                                              \
        panel_int8(q + r * depth, row_scales + r, w + out * depth, next, scales + out, shifts + out, bias ? bias + out : 0, \
                   y + r * outputs + out, count, depth, outputs)
        ROWS_OF(HIGH);
        ROWS_OF(4);
        ROWS_OF(2);
        ROWS_OF(1);
    }
}
#else
int has_linear_int8(void) { return 0; }
#endif
