/* The draft head on one row at a time: an MLP on the hidden states of a row and of the row before it, and the embedding of
 * the token before the row. See model/draft_head.py. */
#ifndef ORTHRUS_DRAFT_HEAD_H
#define ORTHRUS_DRAFT_HEAD_H

#include <stdint.h>
#include <string.h>

#include "draft_head_amx.h"
#include "embedding.h"
#include "simd.h"
#include "threads.h"

/* row, before, token [units, hidden]; output [hidden, units]; the vectors of all tokens. Both sizes are multiples of LANES. */
typedef struct {
    const float *bias;
    const scalar_t *row, *before, *token, *output;
    EmbeddingTable embedding;
    int64_t hidden, units;
} DraftHead;

/* Rows of weights at a time: few sums would wait for one another. */
enum { DOTS = SIMD_REGISTERS == 32 ? 8 : 4 };

/* out[k] = the product of row k of w with x, for DOTS rows of `size` elements. */
static inline void dots(const scalar_t *w, const scalar_t *x, int64_t size, float *out) {
#ifdef BFLOAT16
    f32x16 sums[DOTS];
    for (int k = 0; k < DOTS; k++) sums[k] = f32_zero();
    for (int64_t i = 0; i < size; i += 2 * LANES) {
        int64_t words = (size - i) / 2;
        i32x16 own = i32_load_words(x + i, words);
#pragma GCC unroll 8
        for (int k = 0; k < DOTS; k++) {
            prefetch_ahead(w + k * size + i);
            sums[k] = dot_bf16(sums[k], i32_load_words(w + k * size + i, words), own);
        }
    }
    for (int k = 0; k < DOTS; k += 4) {
        float lanes[LANES];
        f32_store(lanes, f32_reduce_quarters(sums + k));
        for (int q = 0; q < 4; q++) out[k + q] = lanes[q] + lanes[4 + q] + (lanes[8 + q] + lanes[12 + q]);
    }
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

/* Whether the products of a head of these sizes run on tiles. */
static inline int head_on_tiles(const DraftHead *head) {
#ifdef HAVE_HEAD_AMX
    return use_amx && head->hidden % COLUMN_OUTPUTS == 0 && head->units % COLUMN_OUTPUTS == 0;
#else
    return (void)head, 0;
#endif
}

/* Units that are computed together. */
static inline int64_t unit_step(const DraftHead *head) { return head_on_tiles(head) ? 2 * LANES : DOTS; }

/* The hidden states of S rows as columns, [hidden / 2][S][2], where the head is on tiles. */
static void pack_states(const DraftHead *head, const scalar_t *states, int64_t S, int32_t *columns) {
#ifdef HAVE_HEAD_AMX
    for (int64_t s = 0; s < S && head_on_tiles(head); s++)
        for (int64_t i = 0; i < head->hidden / 2; i++)
            memcpy(columns + i * S + s, states + s * head->hidden + 2 * i, sizeof(int32_t));
#endif
    (void)head, (void)states, (void)S, (void)columns;
}

/* What some units take from each of S - 1 rows and the row before it: contexts [S - 1, units]. states [S, hidden] start with
 * the row before the first; `columns` are the same where the head is on tiles. */
static void head_contexts(const DraftHead *head, Range units, const scalar_t *states, const int32_t *columns, int64_t S,
                          float *contexts) {
#ifdef HAVE_HEAD_AMX
    if (head_on_tiles(head)) {
        float sums[COLUMN_OUTPUTS * MAX_COLUMNS];
        for (int64_t first = 0; first + 1 < S; first += MAX_COLUMNS) {
            int64_t count = S - 1 - first < MAX_COLUMNS ? S - 1 - first : MAX_COLUMNS;
            configure_column_tiles(count);
            for (int64_t unit = units.begin; unit < units.end; unit += COLUMN_OUTPUTS) {
                zero_column_sums();
                add_columns(head->row + unit * head->hidden, head->hidden, columns + first + 1, S);
                add_columns(head->before + unit * head->hidden, head->hidden, columns + first, S);
                store_column_sums(sums, count);
                for (int64_t r = 0; r < count; r++)
                    for (int64_t u = 0; u < COLUMN_OUTPUTS; u++)
                        contexts[(first + r) * head->units + unit + u] = sums[u * count + r] + head->bias[unit + u];
            }
        }
        _tile_release();
        return;
    }
#endif
    (void)columns;
    for (int64_t unit = units.begin; unit < units.end; unit += DOTS)
        for (int64_t r = 0; r + 1 < S; r++) {
            float of_row[DOTS], of_before[DOTS];
            dots(head->row + unit * head->hidden, states + (r + 1) * head->hidden, head->hidden, of_row);
            dots(head->before + unit * head->hidden, states + r * head->hidden, head->hidden, of_before);
            for (int k = 0; k < DOTS; k++)
                contexts[r * head->units + unit + k] = of_row[k] + of_before[k] + head->bias[unit + k];
        }
}

/* Calls of `head_direction` come between these two. */
static void begin_directions(const DraftHead *head) {
#ifdef HAVE_HEAD_AMX
    if (head_on_tiles(head)) configure_column_tiles(1);
#endif
    (void)head;
}

static void end_directions(const DraftHead *head) {
#ifdef HAVE_HEAD_AMX
    if (head_on_tiles(head)) _tile_release();
#endif
    (void)head;
}

/* out = w x, for `outputs` rows of w. */
static void multiply_row(const DraftHead *head, const scalar_t *w, const scalar_t *x, int64_t outputs, int64_t size, float *out) {
#ifdef HAVE_HEAD_AMX
    if (head_on_tiles(head)) {
        multiply_column(w, x, outputs, size, out);
        return;
    }
#endif
    (void)head;
    for (int64_t o = 0; o < outputs; o += DOTS) dots(w + o * size, x, size, out + o);
}

/* The vector of a row with this context after `token`: direction [hidden]. activations [units] and embedded [hidden] are
 * scratch. */
static void head_direction(const DraftHead *head, const float *context, int64_t token, float *activations, scalar_t *embedded,
                           float *direction) {
    const scalar_t *embedding = embedding_of(&head->embedding, token, embedded);
    multiply_row(head, head->token, embedding, head->units, head->hidden, activations);
    scalar_t *narrow = (scalar_t *)activations; /* a scalar is no longer than a float, so it lies before the next one read */
    for (int64_t unit = 0; unit < head->units; unit += LANES) {
        f32x16 x = f32_add(f32_load(context + unit), f32_load(activations + unit));
        f32x16 e = fast_exp_lanes(f32_sub(f32_zero(), x));
        store_lanes(narrow + unit, f32_div(x, f32_add(e, f32_set1(1.0f))));
    }
    multiply_row(head, head->output, narrow, head->hidden, head->units, direction);
}

/* What is added to the logit of a candidate: the product of the vector with its embedding. embedded [hidden] is scratch. */
static float head_correction(const DraftHead *head, const float *direction, int64_t token, scalar_t *embedded) {
    const scalar_t *embedding = embedding_of(&head->embedding, token, embedded);
    f32x16 sums = f32_zero();
    for (int64_t i = 0; i < head->hidden; i += LANES)
        sums = f32_fma(f32_load(direction + i), load_lanes(embedding + i), sums);
    return f32_reduce_add(sums);
}

#endif
