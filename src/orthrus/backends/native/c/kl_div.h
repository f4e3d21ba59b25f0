/* Forward KL divergence of distillation, with its gradient. */
#ifndef ORTHRUS_KL_DIV_H
#define ORTHRUS_KL_DIV_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "simd.h"
#include "softmax.h"
#include "team.h"
#include "threads.h"

typedef struct {
    scalar_t *student;
    const scalar_t *teacher;
    float *losses;
    int64_t rows, size;
} ForwardKl;

static void forward_kl_share(void *argument, Thread thread) {
    const ForwardKl *call = argument;
    int64_t size = call->size;
    Range own = split(call->rows, thread);
    float *q = malloc(2 * size * sizeof(float)), *p = q + size;
    for (int64_t n = own.begin; n < own.end; n++) {
        scalar_t *s = call->student + n * size;
        const scalar_t *t = call->teacher + n * size;
        for (int64_t i = 0; i < size; i++) q[i] = to_float(s[i]), p[i] = to_float(t[i]);
        float max_q, max_p, lanes[LANES] = {0}, gap = 0;
        float sum_q = softmax_exp(q, size, &max_q), sum_p = softmax_exp(p, size, &max_p);
        for (int64_t i = 0; i < size; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += p[i + l] * (to_float(t[i + l]) - to_float(s[i + l]));
        for (int l = 0; l < LANES; l++) gap += lanes[l];
        call->losses[n] = gap / sum_p + (max_q + logf(sum_q)) - (max_p + logf(sum_p));
        float scale_q = 1.0f / sum_q, scale_p = 1.0f / sum_p;
        for (int64_t i = 0; i < size; i++) s[i] = from_float(q[i] * scale_q - p[i] * scale_p);
    }
    free(q);
}

/* KL(teacher || student) of each row of logits [rows, size], size a multiple of LANES. The student's logits become the
 * gradient q - p. */
void forward_kl(scalar_t *student, const scalar_t *teacher, float *losses, int64_t rows, int64_t size, int64_t threads) {
    parallel(threads, forward_kl_share, &(ForwardKl){student, teacher, losses, rows, size});
}

#endif
