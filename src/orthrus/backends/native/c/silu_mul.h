/* The gated activations silu(gate) * up, with its backward, and gelu(gate) * up. */
#ifndef ORTHRUS_SILU_MUL_H
#define ORTHRUS_SILU_MUL_H

#include <stdint.h>

#include "float_state.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

/* out[i] = silu(x[i]) * x[size + i] for i in `range`. */
static inline void silu_mul_row(const scalar_t *x, scalar_t *out, int64_t size, Range range) {
    int64_t i = range.begin;
    for (; i + LANES <= range.end; i += LANES) {
        f32x16 g = load_lanes(x + i), up = load_lanes(x + size + i);
        f32x16 d = f32_add(f32_set1(1.0f), fast_exp_lanes(f32_sub(f32_zero(), g)));
        store_lanes(out + i, f32_mul(f32_mul(g, f32_reciprocal(d)), up));
    }
    for (; i < range.end; i++) {
        float g = to_float(x[i]);
        out[i] = from_float(g / (1.0f + fast_exp(-g)) * to_float(x[size + i]));
    }
}

/* The same with gelu in its form by tanh: g / 2 (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) = g - g / (exp(2 ..) + 1). */
static inline void gelu_mul_row(const scalar_t *x, scalar_t *out, int64_t size, Range range) {
    const float linear = 1.5957691216f, cubic = 0.0713548162f; /* 2 sqrt(2 / pi), and 0.044715 times that */
    int64_t i = range.begin;
    for (; i + LANES <= range.end; i += LANES) {
        f32x16 g = load_lanes(x + i), up = load_lanes(x + size + i), square = f32_mul(g, g);
        f32x16 slope = f32_add(f32_set1(linear), f32_mul(f32_set1(cubic), square));
        f32x16 d = f32_add(f32_set1(1.0f), fast_exp_lanes(f32_mul(g, slope)));
        store_lanes(out + i, f32_mul(f32_sub(g, f32_div(g, d)), up));
    }
    for (; i < range.end; i++) {
        float g = to_float(x[i]);
        out[i] = from_float((g - g / (1.0f + fast_exp(g * (linear + cubic * g * g)))) * to_float(x[size + i]));
    }
}

/* x [rows, 2 size]: gates, then ups; out [rows, size]. */
void gelu_mul(const scalar_t *x, scalar_t *out, int64_t rows, int64_t size) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    for (int64_t n = 0; n < rows; n++) gelu_mul_row(x + 2 * n * size, out + n * size, size, (Range){0, size});
}

/* The same with silu. */
void silu_mul(const scalar_t *x, scalar_t *out, int64_t rows, int64_t size) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    for (int64_t n = 0; n < rows; n++) silu_mul_row(x + 2 * n * size, out + n * size, size, (Range){0, size});
}

typedef struct {
    const scalar_t *x, *grad;
    scalar_t *out;
    int64_t rows, size;
} SiluMulBackward;

static inline void silu_mul_backward_row(const scalar_t *x, const scalar_t *grad, scalar_t *out, int64_t size) {
    int64_t i = 0;
    f32x16 one = f32_set1(1.0f);
    for (; i + LANES <= size; i += LANES) {
        f32x16 g = load_lanes(x + i), d = load_lanes(grad + i);
        f32x16 sigmoid = f32_reciprocal(f32_add(one, fast_exp_lanes(f32_sub(f32_zero(), g)))), share = f32_mul(d, sigmoid);
        f32x16 slope = f32_fma(g, f32_sub(one, sigmoid), one);
        store_lanes(out + i, f32_mul(f32_mul(share, load_lanes(x + size + i)), slope));
        store_lanes(out + size + i, f32_mul(share, g));
    }
    for (; i < size; i++) {
        float g = to_float(x[i]), d = to_float(grad[i]), sigmoid = 1.0f / (1.0f + fast_exp(-g));
        out[i] = from_float(d * to_float(x[size + i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
        out[size + i] = from_float(d * g * sigmoid);
    }
}

static void silu_mul_backward_share(void *argument, Thread thread) {
    const SiluMulBackward *call = argument;
    int64_t size = call->size;
    Range own = split(call->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++)
        silu_mul_backward_row(call->x + 2 * n * size, call->grad + n * size, call->out + 2 * n * size, size);
}

/* Backward of silu_mul: x [rows, 2 size], grad [rows, size] to out [rows, 2 size]. */
void silu_mul_backward(const scalar_t *x, const scalar_t *grad, scalar_t *out, int64_t rows, int64_t size,
                       int64_t threads) {
    parallel(threads, silu_mul_backward_share, &(SiluMulBackward){x, grad, out, rows, size});
}

#endif
