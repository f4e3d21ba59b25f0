/* One softmax over two tensors of attention scores in training: those of the text before the root of a draft block, and
 * those of the block itself. past [groups, blocks, rows, text], own [groups, blocks, rows, block]. */
#ifndef ORTHRUS_BLOCK_SOFTMAX_H
#define ORTHRUS_BLOCK_SOFTMAX_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simd.h"
#include "team.h"
#include "threads.h"

typedef struct {
    int64_t groups, blocks, rows, text, block;
} BlockScores;

/* x becomes exp(x - max); returns their sum. The size is a multiple of LANES. */
static inline float softmax_exp(float *x, int64_t size) {
    f32x16 tops = f32_load(x), sums = f32_zero();
    for (int64_t i = LANES; i < size; i += LANES) tops = f32_max(tops, f32_load(x + i));
    f32x16 max = f32_set1(f32_reduce_max(tops));
    for (int64_t i = 0; i < size; i += LANES) {
        f32x16 value = fast_exp_lanes(f32_sub(f32_load(x + i), max));
        f32_store(x + i, value);
        sums = f32_add(sums, value);
    }
    return f32_reduce_add(sums);
}

/* y = x * factor. */
static inline void scaled_floats(const scalar_t *x, float *y, int64_t size, float factor) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) f32_store(y + i, f32_mul(load_lanes(x + i), f32_set1(factor)));
    for (; i < size; i++) y[i] = to_float(x[i]) * factor;
}

static inline void scaled_scalars(const float *x, scalar_t *y, int64_t size, float factor) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store_lanes(y + i, f32_mul(f32_load(x + i), f32_set1(factor)));
    for (; i < size; i++) y[i] = from_float(x[i] * factor);
}

typedef struct {
    scalar_t *past, *own;
    const int64_t *kv_lens;
    const BlockScores *shape;
    float scale;
} BlockSoftmax;

static void block_softmax_share(void *argument, Thread thread) {
    const BlockSoftmax *call = argument;
    const BlockScores *shape = call->shape;
    int64_t text = shape->text, block = shape->block;
    float scale = call->scale;
    Range range = split(shape->groups * shape->blocks * shape->rows, thread);
    for (int64_t n = range.begin; n < range.end; n++) {
        scalar_t *a = call->past + n * text, *b = call->own + n * block;
        int64_t visible = call->kv_lens[n / shape->rows % shape->blocks];
        int64_t count = (visible + block + LANES - 1) / LANES * LANES;
        float scores[text + block + LANES];
        scaled_floats(a, scores, visible, scale);
        scaled_floats(b, scores + visible, block, scale);
        for (int64_t i = visible + block; i < count; i++) scores[i] = -INFINITY;
        float inverse = 1.0f / softmax_exp(scores, count);
        scaled_scalars(scores, a, visible, inverse);
        memset(a + visible, 0, (text - visible) * sizeof(scalar_t));
        scaled_scalars(scores + visible, b, block, inverse);
    }
}

/* In place; of the text, block s attends to the first kv_lens[s] keys. */
void block_softmax(scalar_t *past, scalar_t *own, const int64_t *kv_lens, const BlockScores *shape, float scale,
                   int64_t threads) {
    parallel(threads, block_softmax_share, &(BlockSoftmax){past, own, kv_lens, shape, scale});
}

typedef struct {
    const scalar_t *past, *own;
    scalar_t *grad_past, *grad_own;
    const BlockScores *shape;
    float scale;
} BlockSoftmaxBackward;

static void block_softmax_backward_share(void *argument, Thread thread) {
    const BlockSoftmaxBackward *call = argument;
    const BlockScores *shape = call->shape;
    int64_t text = shape->text, block = shape->block;
    float scale = call->scale;
    Range range = split(shape->groups * shape->blocks * shape->rows, thread);
    for (int64_t n = range.begin; n < range.end; n++) {
        const scalar_t *a = call->past + n * text, *b = call->own + n * block;
        scalar_t *da = call->grad_past + n * text, *db = call->grad_own + n * block;
        float lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= text; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += to_float(a[i + l]) * to_float(da[i + l]);
        for (int l = 0; i + l < text; l++) lanes[l] += to_float(a[i + l]) * to_float(da[i + l]);
        for (i = 0; i < block; i++) lanes[i % LANES] += to_float(b[i]) * to_float(db[i]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        for (i = 0; i < text; i++) da[i] = from_float(to_float(a[i]) * (to_float(da[i]) - dot) * scale);
        for (i = 0; i < block; i++) db[i] = from_float(to_float(b[i]) * (to_float(db[i]) - dot) * scale);
    }
}

/* Backward: gradients of the weights become, in place, gradients of the unscaled scores. */
void block_softmax_backward(const scalar_t *past, const scalar_t *own, scalar_t *grad_past, scalar_t *grad_own,
                            const BlockScores *shape, float scale, int64_t threads) {
    BlockSoftmaxBackward call = {past, own, grad_past, grad_own, shape, scale};
    parallel(threads, block_softmax_backward_share, &call);
}

#endif
