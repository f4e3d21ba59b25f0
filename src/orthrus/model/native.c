/* The small work between two matrix products, fused: norms, rotary embedding with the cache write, the gated activation.
 *
 * Every row is computed alone, in one fixed order, so its bits cannot depend on the rows beside it. All arithmetic is
 * fp32; VALUE is how numbers are stored. Compiled on the user's machine, once per type: see native.py.
 */
#include <math.h>
#include <stdint.h>
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

/* Split qkv [B*R, (H + 2G) * E]: q rotated to `q`, k rotated and v copied to their places in the cache of one layer.
 * `cos` and signed `sin` hold a row of E values per row; positions [B*R]; strides count values. */
void place(const VALUE *qkv, const VALUE *q_norm, const VALUE *k_norm, const float *cos, const float *sin,
           const int64_t *positions, VALUE *q, VALUE *keys, VALUE *values, const int64_t *sizes, float eps) {
    int64_t B = sizes[0], R = sizes[1], H = sizes[2], G = sizes[3], E = sizes[4];
    int64_t slot_stride = sizes[5], head_stride = sizes[6];
    for (int64_t n = 0; n < B * R; n++, cos += E, sin += E) {
        for (int64_t h = 0; h < H; h++, qkv += E, q += E) rotate(qkv, q_norm, cos, sin, q, E, eps);
        int64_t at = (n / R) * slot_stride + positions[n] * E;
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
