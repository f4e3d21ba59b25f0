/* The draft head on one row at a time: an MLP on the hidden states of a row and of the row before it, and the embedding of
 * the token before the row. See model/draft_head.py. */
#ifndef ORTHRUS_DRAFT_HEAD_H
#define ORTHRUS_DRAFT_HEAD_H

#include <stdint.h>

#include "simd.h"

/* row, before, token [units, hidden]; output [hidden, units]; embedding [vocabulary, hidden]. Both sizes are multiples of
 * LANES. */
typedef struct {
    const float *bias;
    const scalar_t *row, *before, *token, *output, *embedding;
    int64_t hidden, units;
} DraftHead;

enum { DOTS = 4 };

/* out[k] = the product of row k of w with x, for DOTS rows of `size` elements. */
static inline void dots(const scalar_t *w, const scalar_t *x, int64_t size, float *out) {
#ifdef BFLOAT16
    f32x16 sums[DOTS] = {f32_zero(), f32_zero(), f32_zero(), f32_zero()};
    for (int64_t i = 0; i < size; i += 2 * LANES) {
        int64_t words = (size - i) / 2;
        i32x16 own = i32_load_words(x + i, words);
        for (int k = 0; k < DOTS; k++) {
            prefetch_ahead(w + k * size + i);
            sums[k] = dot_bf16(sums[k], i32_load_words(w + k * size + i, words), own);
        }
    }
    for (int k = 0; k < DOTS; k++) out[k] = f32_reduce_add(sums[k]);
#else
    float lanes[DOTS][LANES] = {{0}};
    for (int64_t i = 0; i < size; i += LANES)
        for (int k = 0; k < DOTS; k++)
            for (int l = 0; l < LANES; l++) lanes[k][l] += to_float(w[k * size + i + l]) * to_float(x[i + l]);
    for (int k = 0; k < DOTS; k++) {
        out[k] = 0;
        for (int l = 0; l < LANES; l++) out[k] += lanes[k][l];
    }
#endif
}

/* What DOTS units of the MLP take from a row with these hidden states and those of the row before: context [units]. */
static void head_context(const DraftHead *head, int64_t unit, const scalar_t *row, const scalar_t *before, float *context) {
    float of_row[DOTS], of_before[DOTS];
    dots(head->row + unit * head->hidden, row, head->hidden, of_row);
    dots(head->before + unit * head->hidden, before, head->hidden, of_before);
    for (int k = 0; k < DOTS; k++) context[unit + k] = of_row[k] + of_before[k] + head->bias[unit + k];
}

/* The vector of a row with this context after `token`: direction [hidden]. hidden [units] is scratch. */
static void head_direction(const DraftHead *head, const float *context, int64_t token, scalar_t *hidden, float *direction) {
    float own[DOTS];
    for (int64_t unit = 0; unit < head->units; unit += DOTS) {
        dots(head->token + unit * head->hidden, head->embedding + token * head->hidden, head->hidden, own);
        for (int k = 0; k < DOTS; k++) {
            float x = context[unit + k] + own[k];
            hidden[unit + k] = from_float(x / (1.0f + fast_exp(-x)));
        }
    }
    for (int64_t i = 0; i < head->hidden; i += DOTS) dots(head->output + i * head->units, hidden, head->units, direction + i);
}

/* What is added to the logit of a candidate: the product of the vector with its embedding. */
static float head_correction(const DraftHead *head, const float *direction, int64_t token) {
    const scalar_t *embedding = head->embedding + token * head->hidden;
    float lanes[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < head->hidden; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += direction[i + l] * to_float(embedding[i + l]);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

#endif
