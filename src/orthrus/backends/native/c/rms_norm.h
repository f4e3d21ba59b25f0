/* Root-mean-square norm, with an optional addition before it, and its backward. */
#ifndef ORTHRUS_RMS_NORM_H
#define ORTHRUS_RMS_NORM_H

#include <math.h>
#include <stdint.h>

#include "float_state.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

/* 1 / sqrt(mean(x^2) + eps), summed in sixteen lanes that are added in order. */
static inline float inverse_rms(const scalar_t *x, int64_t size, float eps) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    f32x16 sums = f32_zero();
    for (; i + LANES <= size; i += LANES) sums = f32_add(sums, f32_mul(load_lanes(x + i), load_lanes(x + i)));
    f32_store(lanes, sums);
    for (int l = 0; i + l < size; l++) lanes[l] += to_float(x[i + l]) * to_float(x[i + l]);
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

/* x += delta */
static inline void add_row(scalar_t *x, const scalar_t *delta, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store_lanes(x + i, f32_add(load_lanes(x + i), load_lanes(delta + i)));
    for (; i < size; i++) x[i] = from_float(to_float(x[i]) + to_float(delta[i]));
}

/* out = x * factor * (weight + offset) */
static inline void scale_row(const scalar_t *x, float factor, const scalar_t *weight, float offset, scalar_t *out,
                             int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        f32x16 by = f32_add(load_lanes(weight + i), f32_set1(offset));
        store_lanes(out + i, f32_mul(f32_mul(load_lanes(x + i), f32_set1(factor)), by));
    }
    for (; i < size; i++) out[i] = from_float(to_float(x[i]) * factor * (to_float(weight[i]) + offset));
}

/* x += delta where there is one; out[n] = x[n] / rms(x[n]) * (weight + offset). x, delta, out [rows, size]; out may be x. */
void rms_norm(scalar_t *x, const scalar_t *delta, const scalar_t *weight, scalar_t *out, int64_t rows, int64_t size,
              float eps, float offset) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    for (int64_t n = 0; n < rows; n++, x += size, out += size) {
        if (delta) add_row(x, delta + n * size, size);
        scale_row(x, inverse_rms(x, size, eps), weight, offset, out, size);
    }
}

typedef struct {
    const scalar_t *x, *weight, *grad;
    scalar_t *out;
    int64_t rows, size;
    float eps;
} RmsNormBackward;

static void rms_norm_backward_share(void *argument, Thread thread) {
    const RmsNormBackward *call = argument;
    const scalar_t *weight = call->weight;
    scalar_t *out = call->out;
    int64_t size = call->size;
    Range own = split(call->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        const scalar_t *a = call->x + n * size, *g = call->grad + n * size;
        float inverse = inverse_rms(a, size, call->eps), lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += to_float(g[i + l]) * to_float(weight[i + l]) * to_float(a[i + l]);
        for (int l = 0; i + l < size; l++) lanes[l] += to_float(g[i + l]) * to_float(weight[i + l]) * to_float(a[i + l]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        float shrink = inverse * inverse * inverse * dot / (float)size;
        for (i = 0; i < size; i++)
            out[n * size + i] = from_float(to_float(g[i]) * to_float(weight[i]) * inverse - to_float(a[i]) * shrink);
    }
}

/* Backward of rms_norm towards x: (g w - x mean(g w x) / ms) / rms. */
void rms_norm_backward(const scalar_t *x, const scalar_t *weight, const scalar_t *grad, scalar_t *out, int64_t rows,
                       int64_t size, float eps, int64_t threads) {
    RmsNormBackward call = {x, weight, grad, out, rows, size, eps};
    parallel(threads, rms_norm_backward_share, &call);
}

#endif
