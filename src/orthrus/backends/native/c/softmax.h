/* Softmax over logits: the largest probability of a row, and the exponentials that the training kernels share. */
#ifndef ORTHRUS_SOFTMAX_H
#define ORTHRUS_SOFTMAX_H

#include <math.h>
#include <stdint.h>

#include "simd.h"
#include "team.h"
#include "threads.h"

/* x becomes exp(x - max); returns their sum. The size is a multiple of LANES. */
static inline float softmax_exp(float *x, int64_t size, float *max) {
    float tops[LANES], lanes[LANES] = {0}, sum = 0;
    for (int l = 0; l < LANES; l++) tops[l] = x[l];
    for (int64_t i = LANES; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) tops[l] = x[i + l] > tops[l] ? x[i + l] : tops[l];
    *max = tops[0];
    for (int l = 1; l < LANES; l++) *max = tops[l] > *max ? tops[l] : *max;
    for (int64_t i = 0; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += x[i + l] = fast_exp(x[i + l] - *max);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

typedef struct {
    const scalar_t *x;
    float *out;
    int64_t rows, size;
} Top1Call;

static void top1_probability_share(void *argument, Thread thread) {
    const Top1Call *call = argument;
    int64_t size = call->size;
    Range own = split(call->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        const scalar_t *row = call->x + n * size;
        float max = -INFINITY, sum = 0;
        int64_t i = 0;
        f32x16 tops = f32_set1(max), sums = f32_zero();
        for (; i + LANES <= size; i += LANES) tops = f32_max(tops, load_lanes(row + i));
        max = f32_reduce_max(tops);
        for (; i < size; i++) max = to_float(row[i]) > max ? to_float(row[i]) : max;
        i = 0;
        for (; i + LANES <= size; i += LANES)
            sums = f32_add(sums, fast_exp_lanes(f32_sub(load_lanes(row + i), f32_set1(max))));
        sum = f32_reduce_add(sums);
        for (; i < size; i++) sum += fast_exp(to_float(row[i]) - max);
        call->out[n] = 1.0f / sum;
    }
}

/* out[n] = the largest probability of softmax(x[n]), x [rows, size]. */
void top1_probability(const scalar_t *x, float *out, int64_t rows, int64_t size, int64_t threads) {
    parallel(threads, top1_probability_share, &(Top1Call){x, out, rows, size});
}

#endif
