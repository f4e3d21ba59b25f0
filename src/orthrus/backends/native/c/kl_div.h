/* Forward KL divergence of distillation, with its gradient. */
#ifndef ORTHRUS_KL_DIV_H
#define ORTHRUS_KL_DIV_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "largest_logits.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

typedef struct {
    scalar_t *student;
    const scalar_t *teacher;
    float *losses;
    int64_t rows, size;
} ForwardKl;

/* The exponentials q and p of a row, relative to the largest of each; returns the loss. The gradient is q - p, each over its
 * sum. */
static float exponentials(const scalar_t *student, const scalar_t *teacher, int64_t size, float *q, float *p, float *sums) {
    float max_q = largest_of_row(student, size), max_p = largest_of_row(teacher, size);
    f32x16 sum_q = f32_zero(), sum_p = f32_zero(), gap = f32_zero(), log2_e = f32_set1(1.44269504f);
    for (int64_t i = 0; i < size; i += LANES) {
        f32x16 s = load_lanes(student + i), t = load_lanes(teacher + i);
        f32x16 exp_s = fast_exp2_lanes(f32_mul(f32_sub(s, f32_set1(max_q)), log2_e));
        f32x16 exp_t = fast_exp2_lanes(f32_mul(f32_sub(t, f32_set1(max_p)), log2_e));
        f32_store(q + i, exp_s);
        f32_store(p + i, exp_t);
        sum_q = f32_add(sum_q, exp_s);
        sum_p = f32_add(sum_p, exp_t);
        gap = f32_fma(exp_t, f32_sub(t, s), gap);
    }
    sums[0] = f32_reduce_add(sum_q);
    sums[1] = f32_reduce_add(sum_p);
    return f32_reduce_add(gap) / sums[1] + (max_q + logf(sums[0])) - (max_p + logf(sums[1]));
}

static void forward_kl_share(void *argument, Thread thread) {
    const ForwardKl *call = argument;
    int64_t size = call->size;
    Range own = split(call->rows, thread);
    float *q = malloc(2 * size * sizeof(float)), *p = q + size;
    for (int64_t n = own.begin; n < own.end; n++) {
        scalar_t *student = call->student + n * size;
        float sums[2];
        call->losses[n] = exponentials(student, call->teacher + n * size, size, q, p, sums);
        f32x16 scale_q = f32_set1(1.0f / sums[0]), scale_p = f32_set1(1.0f / sums[1]);
        for (int64_t i = 0; i < size; i += LANES)
            store_lanes(student + i, f32_fnma(f32_load(p + i), scale_p, f32_mul(f32_load(q + i), scale_q)));
    }
    free(q);
}

/* KL(teacher || student) of each row of logits [rows, size], size a multiple of LANES. The student's logits become the
 * gradient q - p. */
void forward_kl(scalar_t *student, const scalar_t *teacher, float *losses, int64_t rows, int64_t size, int64_t threads) {
    parallel(threads, forward_kl_share, &(ForwardKl){student, teacher, losses, rows, size});
}

#endif
