/* The exponentials of a softmax, which several kernels share. */
#ifndef ORTHRUS_SOFTMAX_H
#define ORTHRUS_SOFTMAX_H

#include <stdint.h>

#include "simd.h"

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

#endif
