/* simd.h in plain C, for any processor, and for comparison with the other levels: it gives their bits where the compiler has
 * fused multiply-adds. */
#ifndef ORTHRUS_SIMD_PLAIN_H
#define ORTHRUS_SIMD_PLAIN_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SIMD_REGISTERS 8

typedef struct {
    float v[16];
} f32x16;
typedef struct {
    int32_t v[16];
} i32x16;
typedef i32x16 mask16;

#define EACH_LANE                                                                                                      \
    _Pragma("GCC unroll 16") for (int l = 0; l < 16; l++)
#define DEFINE_F32(name, expression, ...)                                                                              \
    static inline f32x16 name(__VA_ARGS__) {                                                                           \
        f32x16 y;                                                                                                      \
        EACH_LANE y.v[l] = (expression);                                                                               \
        return y;                                                                                                      \
    }
#define DEFINE_I32(name, expression, ...)                                                                              \
    static inline i32x16 name(__VA_ARGS__) {                                                                           \
        i32x16 y;                                                                                                      \
        EACH_LANE y.v[l] = (int32_t)(expression);                                                                      \
        return y;                                                                                                      \
    }

static inline float fma_lane(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static inline float reduce_quarter(const float *x) { return (x[0] + x[2]) + (x[1] + x[3]); }

static inline float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline float float_of_half(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float x = float_of_bits(magnitude) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return float_of_bits(((half & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : bits) | sign);
}

DEFINE_F32(f32_zero, 0.0f, void)
DEFINE_F32(f32_set1, x, float x)
DEFINE_F32(f32_broadcast, *x, const float *x)
DEFINE_F32(f32_load, x[l], const float *x)
DEFINE_F32(f32_in_registers, x.v[l], f32x16 x)
DEFINE_F32(f32_add, a.v[l] + b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_sub, a.v[l] - b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_mul, a.v[l] * b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_div, a.v[l] / b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_max, a.v[l] > b.v[l] ? a.v[l] : b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_min, a.v[l] < b.v[l] ? a.v[l] : b.v[l], f32x16 a, f32x16 b)
DEFINE_F32(f32_fma, fma_lane(a.v[l], b.v[l], c.v[l]), f32x16 a, f32x16 b, f32x16 c)
DEFINE_F32(f32_fnma, fma_lane(-a.v[l], b.v[l], c.v[l]), f32x16 a, f32x16 b, f32x16 c)
DEFINE_F32(f32_abs, fabsf(a.v[l]), f32x16 a)
DEFINE_F32(f32_round, nearbyintf(a.v[l]), f32x16 a)
DEFINE_F32(f32_reciprocal, 1.0f / a.v[l], f32x16 a)
DEFINE_F32(f32_scale, a.v[l] * float_of_bits((uint32_t)((int32_t)whole.v[l] + 127) << 23), f32x16 a, f32x16 whole)
DEFINE_F32(f32_keep, mask.v[l] ? a.v[l] : 0.0f, mask16 mask, f32x16 a)
DEFINE_F32(f32_mask_max, mask.v[l] && !(a.v[l] > b.v[l]) ? b.v[l] : a.v[l], mask16 mask, f32x16 a, f32x16 b)
DEFINE_F32(f32_reduce_quarters, reduce_quarter(x[l % 4].v + l / 4 * 4), const f32x16 *x)
DEFINE_F32(i32_as_f32, float_of_bits((uint32_t)a.v[l]), i32x16 a)
DEFINE_F32(i32_to_f32, (float)a.v[l], i32x16 a)
DEFINE_F32(load_f16, float_of_half(((const uint16_t *)x)[l]), const void *x)
DEFINE_F32(load_i8, (float)((const int8_t *)x)[l], const void *x)
DEFINE_F32(load_u8, (float)((const uint8_t *)x)[l], const void *x)
DEFINE_F32(load_bf16, float_of_bits((uint32_t)x[l] << 16), const uint16_t *x)

static inline int32_t word_at(const void *x, int64_t i) {
    int32_t word;
    memcpy(&word, (const char *)x + 4 * i, 4);
    return word;
}

DEFINE_I32(i32_zero, 0, void)
DEFINE_I32(i32_set1, x, int32_t x)
DEFINE_I32(i32_load, word_at(x, l), const void *x)
DEFINE_I32(i32_broadcast, word_at(x, 0), const void *x)
DEFINE_I32(i32_in_registers, x.v[l], i32x16 x)
DEFINE_I32(i32_load_i16, ((const int16_t *)x)[l], const void *x)
DEFINE_I32(i32_load_words, count < 16 && l >= 8 ? 0 : word_at(x, l), const void *x, int64_t count)
DEFINE_I32(i32_repeat4, word_at(x, l % 4), const void *x)
DEFINE_I32(i32_add, (uint32_t)a.v[l] + (uint32_t)b.v[l], i32x16 a, i32x16 b)
DEFINE_I32(i32_sub, (uint32_t)a.v[l] - (uint32_t)b.v[l], i32x16 a, i32x16 b)
DEFINE_I32(i32_and, a.v[l] & b.v[l], i32x16 a, i32x16 b)
DEFINE_I32(i32_or, a.v[l] | b.v[l], i32x16 a, i32x16 b)
DEFINE_I32(i32_shift_left, (uint32_t)a.v[l] << bits, i32x16 a, int bits)
DEFINE_I32(i32_shift_right, (uint32_t)a.v[l] >> bits, i32x16 a, int bits)
DEFINE_I32(i32_swap_halves, (uint32_t)a.v[l] << 16 | (uint32_t)a.v[l] >> 16, i32x16 a)
DEFINE_I32(low_nibbles, a.v[l] & 0x0f0f0f0f, i32x16 a)
DEFINE_I32(high_nibbles, (a.v[l] >> 4) & 0x0f0f0f0f, i32x16 a)
DEFINE_I32(f32_to_i32, nearbyintf(a.v[l]), f32x16 a)
DEFINE_I32(lanes_between, i + l >= first && i + l < stop ? -1 : 0, int64_t first, int64_t stop, int64_t i)

static inline i32x16 f32_as_i32(f32x16 a) {
    i32x16 y;
    memcpy(&y, &a, sizeof y);
    return y;
}

static inline i32x16 interleave_i16(const void *x, const void *y) {
    int16_t both[32];
    EACH_LANE memcpy(both + 2 * l, (const int16_t *)x + l, 2), memcpy(both + 2 * l + 1, (const int16_t *)y + l, 2);
    return i32_load(both);
}

static inline void f32_store(float *y, f32x16 a) { memcpy(y, &a, sizeof a); }
static inline void i32_store(void *y, i32x16 a) { memcpy(y, &a, sizeof a); }

static inline void i32_store_i16(void *y, i32x16 a) {
    EACH_LANE ((uint16_t *)y)[l] = (uint16_t)a.v[l];
}

static inline void i32_store_bytes(uint8_t *y, i32x16 a) {
    EACH_LANE y[l] = (uint8_t)a.v[l];
}

static inline float f32_reduce_add(f32x16 a) {
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) a.v[l] += a.v[l + half];
    return a.v[0];
}

static inline float f32_reduce_max(f32x16 a) {
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) a.v[l] = a.v[l + half] > a.v[l] ? a.v[l + half] : a.v[l];
    return a.v[0];
}

static inline int f32_any_greater(f32x16 a, f32x16 b) {
    int found = 0;
    EACH_LANE found |= a.v[l] > b.v[l];
    return found;
}

static inline void transpose_4x4(const int32_t *const *rows, int32_t *out, int64_t stride) {
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++) out[j * stride + i] = rows[i][j];
}

enum { INT8_SHIFT = 0 };

static inline int32_t dot4(int32_t a, int32_t b) {
    int32_t sum = 0;
    for (int i = 0; i < 32; i += 8) sum += (int32_t)(int8_t)(a >> i) * (int32_t)(int8_t)(b >> i);
    return sum;
}

DEFINE_I32(dot_i8, sums.v[l] + dot4(codes.v[l], weights.v[l]), i32x16 sums, i32x16 codes, i32x16 weights)
static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) { return dot_i8(part, nibbles, codes); }
static inline i32x16 u4_sums(i32x16 part) { return part; }
static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) { return dot_i8(dot_i8(sums, a, x), b, y); }

#endif
