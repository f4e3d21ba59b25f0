/* Rotary embedding, fused with the norms of q and k and with the write to the key/value cache. */
#ifndef ORTHRUS_ROPE_H
#define ORTHRUS_ROPE_H

#include <stdint.h>

#include "float_state.h"
#include "kv_cache.h"
#include "rms_norm.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

/* How the heads of q and k are normalised (no norm where the weight is null) and rotated: `cos` and signed `sin` have
 * head_dim values per position, or per row where `positions` is null. */
typedef struct {
    const scalar_t *q_norm, *k_norm;
    const float *cos, *sin;
    const int64_t *positions;
    float eps, norm_offset;
} RopeParams;

/* Keys and values are clamped to this, NaN included: a key that a row does not attend to is multiplied by zero. */
static const float CACHE_LIMIT = 1e15f;

static inline float clamp_finite(float x) {
    x = x > -CACHE_LIMIT ? x : -CACHE_LIMIT;
    return x < CACHE_LIMIT ? x : CACHE_LIMIT;
}

static inline f32x16 clamp_finite_lanes(f32x16 x) { /* of a comparison with NaN, the result is the second operand */
    return f32_min(f32_max(x, f32_set1(-CACHE_LIMIT)), f32_set1(CACHE_LIMIT));
}

/* out = clamp(x) */
static inline void copy_finite(const scalar_t *x, scalar_t *out, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store_lanes(out + i, clamp_finite_lanes(load_lanes(x + i)));
    for (; i < size; i++) out[i] = from_float(clamp_finite(to_float(x[i])));
}

/* One head: normalised where there is a norm, rotated, clamped. */
static inline void rope_head(const scalar_t *x, const scalar_t *norm, const float *cos, const float *sin, scalar_t *out,
                             int64_t size, const RopeParams *rope) {
    int64_t half = size / 2;
    float inverse = norm ? inverse_rms(x, size, rope->eps) : 1.0f, offset = rope->norm_offset;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        f32x16 a = f32_mul(load_lanes(x + i), f32_set1(inverse));
        f32x16 b = f32_mul(load_lanes(x + i + half), f32_set1(inverse));
        if (norm) {
            a = f32_mul(a, f32_add(load_lanes(norm + i), f32_set1(offset)));
            b = f32_mul(b, f32_add(load_lanes(norm + i + half), f32_set1(offset)));
        }
        f32x16 c = f32_load(cos + i), s = f32_load(sin + i);
        f32x16 c2 = f32_load(cos + i + half), s2 = f32_load(sin + i + half);
        store_lanes(out + i, clamp_finite_lanes(f32_add(f32_mul(a, c), f32_mul(b, s))));
        store_lanes(out + i + half, clamp_finite_lanes(f32_add(f32_mul(b, c2), f32_mul(a, s2))));
    }
    for (; i < half; i++) {
        float a = to_float(x[i]) * inverse, b = to_float(x[i + half]) * inverse;
        if (norm) a *= to_float(norm[i]) + offset, b *= to_float(norm[i + half]) + offset;
        out[i] = from_float(clamp_finite(a * cos[i] + b * sin[i]));
        out[i + half] = from_float(clamp_finite(b * cos[i + half] + a * sin[i + half]));
    }
}

/* The rows in `range` of qkv [rows, (heads + 2 kv_heads) head_dim]: q goes to its row of `q` [.., heads, head_dim], k and v
 * to their slots of the cache. slot_mapping [2][rows]: row of q, slot. */
static void rope_and_cache_write_rows(const scalar_t *qkv, scalar_t *q, int64_t heads, const RopeParams *rope,
                                      const int64_t *slot_mapping, const KVCache *cache, int64_t rows, Range range) {
    int64_t kv_heads = cache->kv_heads, size = cache->head_dim;
    for (int64_t n = range.begin; n < range.end; n++) {
        const scalar_t *from = qkv + n * (heads + 2 * kv_heads) * size;
        int64_t angle = rope->positions ? rope->positions[n] : n;
        const float *c = rope->cos + angle * size, *s = rope->sin + angle * size;
        scalar_t *row = q + slot_mapping[n] * heads * size;
        for (int64_t h = 0; h < heads; h++, from += size) rope_head(from, rope->q_norm, c, s, row + h * size, size, rope);
        int64_t slot = slot_mapping[rows + n] * size;
        scalar_t *keys = cache->keys + slot, *values = cache->values + slot;
        for (int64_t g = 0; g < kv_heads; g++, from += size)
            rope_head(from, rope->k_norm, c, s, keys + g * cache->head_stride, size, rope);
        for (int64_t g = 0; g < kv_heads; g++, from += size) copy_finite(from, values + g * cache->head_stride, size);
    }
}

/* All rows. */
void rope_and_cache_write(const scalar_t *qkv, scalar_t *q, int64_t heads, const RopeParams *rope,
                          const int64_t *slot_mapping, const KVCache *cache, int64_t rows) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    rope_and_cache_write_rows(qkv, q, heads, rope, slot_mapping, cache, rows, (Range){0, rows});
}

/* x [rows, heads, size], rows `stride` scalars apart. */
typedef struct {
    int64_t rows, heads, size, stride;
} RopeShape;

typedef struct {
    const scalar_t *x;
    const float *cos, *sin;
    scalar_t *out;
    const RopeShape *shape;
    float direction;
} RopeCall;

static void rotate_share(void *argument, Thread thread) {
    const RopeCall *call = argument;
    int64_t heads = call->shape->heads, size = call->shape->size, half = size / 2;
    float direction = call->direction;
    Range own = split(call->shape->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++)
        for (int64_t h = 0; h < heads; h++) {
            const scalar_t *from = call->x + n * call->shape->stride + h * size;
            const float *c = call->cos + n * size, *s = call->sin + n * size;
            scalar_t *to = call->out + (n * heads + h) * size;
            for (int64_t i = 0; i < half; i++) {
                float a = to_float(from[i]), b = to_float(from[i + half]);
                to[i] = from_float(a * c[i] + direction * b * s[i]);
                to[i + half] = from_float(b * c[i + half] + direction * a * s[i + half]);
            }
        }
}

/* Rotate x to a dense `out`, for training; `direction` is 1, or -1 for the backward. */
void rope(const scalar_t *x, const float *cos, const float *sin, scalar_t *out, const RopeShape *shape, float direction,
          int64_t threads) {
    parallel(threads, rotate_share, &(RopeCall){x, cos, sin, out, shape, direction});
}

#endif
