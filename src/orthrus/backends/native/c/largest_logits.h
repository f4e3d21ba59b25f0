/* The largest logit of a row. */
#ifndef ORTHRUS_LARGEST_LOGITS_H
#define ORTHRUS_LARGEST_LOGITS_H

#include <stdint.h>

#include "simd.h"
#include "team.h"
#include "threads.h"

/* The largest of a row of logits, whose size is a multiple of LANES. */
static inline float largest_of_row(const scalar_t *x, int64_t size) {
    f32x16 tops = load_lanes(x);
    for (int64_t i = LANES; i < size; i += LANES) tops = f32_max(tops, load_lanes(x + i));
    return f32_reduce_max(tops);
}

typedef struct {
    const scalar_t *logits;
    float *largest;
    int64_t *tokens, rows, size;
} LargestLogits;

static void largest_logits_share(void *argument, Thread thread) {
    const LargestLogits *call = argument;
    Range own = split(call->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        const scalar_t *x = call->logits + n * call->size;
        float largest = largest_of_row(x, call->size);
        int64_t token = 0;
        while (token < call->size - 1 && to_float(x[token]) != largest) token++;
        call->largest[n] = largest;
        call->tokens[n] = token;
    }
}

/* Of each row of logits [rows, size], size a multiple of LANES: the largest, and the first token that has it. */
void largest_logits(const scalar_t *logits, float *largest, int64_t *tokens, int64_t rows, int64_t size, int64_t threads) {
    parallel(threads, largest_logits_share, &(LargestLogits){logits, largest, tokens, rows, size});
}

#endif
