/* Quantises weights to int8 with a scale per output and packs them for gemm_int8.h. */
#ifndef ORTHRUS_PACK_INT8_H
#define ORTHRUS_PACK_INT8_H

#include <math.h>
#include <stdint.h>

#include "quantize.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

/* How many inputs of an output lie next to each other in int8 weights: what one word, or half of a matrix, takes. */
#ifdef HAVE_I8MM
enum { INT8_INPUTS = 8 };
#else
enum { INT8_INPUTS = 4 };
#endif

typedef struct {
    const scalar_t *weights;
    int8_t *codes;
    float *scales;
    int32_t *shifts;
    int64_t outputs, inputs;
} Int8Packing;

static void pack_int8_share(void *argument, Thread thread) {
    const Int8Packing *call = argument;
    int64_t inputs = call->inputs;
    Range own = split(call->outputs, thread);
    for (int64_t o = own.begin; o < own.end; o++) {
        const scalar_t *row = call->weights + o * inputs;
        int8_t *to = call->codes + o / LANES * LANES * inputs + o % LANES * INT8_INPUTS;
        float top = 1e-12f;
        int32_t sum = 0;
        for (int64_t i = 0; i < inputs; i++) {
            float size = fabsf(to_float(row[i]));
            top = size > top ? size : top;
        }
        float scale = top / 127.0f;
        for (int64_t i = 0; i < inputs; i++) {
            int32_t code = (int32_t)nearbyintf(to_float(row[i]) / scale);
            to[i / INT8_INPUTS * INT8_INPUTS * LANES + i % INT8_INPUTS] = (int8_t)code;
            sum += code;
        }
        call->scales[o] = scale;
        call->shifts[o] = INT8_SHIFT * sum;
    }
}

/* weights [outputs, inputs] to codes [outputs / 16, inputs / n, 16, n], n being INT8_INPUTS, scales [outputs], and shifts
 * [outputs]: INT8_SHIFT times the sum of an output's codes. Both sizes are multiples of 16. */
void pack_int8(const scalar_t *weights, int8_t *codes, float *scales, int32_t *shifts, int64_t outputs, int64_t inputs,
               int64_t threads) {
    parallel(threads, pack_int8_share, &(Int8Packing){weights, codes, scales, shifts, outputs, inputs});
}

#endif
