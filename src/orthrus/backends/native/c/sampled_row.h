/* Rows of logits with Gumbel noise, for sampling. The reference implementation is gumbel.py.
 *
 * Noise is computed only for the tokens that may win with it: those near the largest logit, and those with loud noise. */
#ifndef ORTHRUS_SAMPLED_ROW_H
#define ORTHRUS_SAMPLED_ROW_H

#include <math.h>
#include <stdint.h>

#include "draft_tree.h"
#include "gumbel.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

enum { PENDING = 256, STATE_TOKENS = 64 };

/* The tokens of a position whose noise is loud, that noise, and the state of the stream before every STATE_TOKENS-th token,
 * lower halves first. */
typedef struct {
    int32_t *tokens;
    float *noise;
    uint64_t *states;
    int64_t count;
} LoudTokens;

/* How rows are sampled: row i of a block is for `position` + i. near: how far below the largest of its row a logit is still
 * near. loud: of each row. */
typedef struct {
    NoiseStream stream;
    int64_t position;
    float temperature, near;
    const LoudTokens *loud;
} RowNoise;

/* A place in a stream: the state before a word. */
typedef struct {
    uint128_t state;
    int64_t word;
} Cursor;

/* One row while noise is added. scores [vocabulary]: where sums go, in units of logits; NULL to find the largest alone:
 * `best`, in units of noise, of `token`. Near tokens wait until there are enough to compute their noise at once. */
typedef struct {
    const DraftBlock *block;
    Cursor at;
    int64_t first;
    float temperature, *scores, best;
    int32_t token, waiting, tokens[PENDING];
    uint32_t bits[PENDING];
} NoisyRow;

static float logit_at(const DraftBlock *block, int64_t place) {
    return block->fp32 ? ((const float *)block->logits)[place] : to_float(((const scalar_t *)block->logits)[place]);
}

static f32x16 logits_at(const DraftBlock *block, int64_t place) {
    return block->fp32 ? f32_load((const float *)block->logits + place) : load_lanes((const scalar_t *)block->logits + place);
}

/* The largest logit of a row, which is copied to `scores` unless that is NULL; NaN if one is NaN, or if the largest is not
 * finite. */
static float largest_logit(const DraftBlock *block, int64_t first, float *scores) {
    const f32x16 low = f32_set1(-LARGEST_LOGIT), high = f32_set1(LARGEST_LOGIT);
    f32x16 tops = low, zeros = f32_zero();
    int64_t i = 0;
    for (; i + LANES <= block->vocabulary; i += LANES) {
        f32x16 x = logits_at(block, first + i);
        if (scores) f32_store(scores + i, x);
        x = f32_min(high, f32_max(low, x)); /* NaN stays NaN */
        tops = f32_max(x, tops);
        zeros = f32_fma(x, f32_zero(), zeros);
    }
    float top = f32_reduce_max(tops), zero = f32_reduce_add(zeros);
    for (; i < block->vocabulary; i++) {
        float x = logit_at(block, first + i);
        if (scores) scores[i] = x;
        top = x > top ? x : top;
        zero += x == x ? 0 : x;
    }
    return top > -LARGEST_LOGIT && top < LARGEST_LOGIT ? top + zero : NAN;
}

/* The bits of a token. The cursor moves to its word, from where it is or from the nearest state that was kept. */
static uint32_t bits_of(const LoudTokens *loud, uint128_t increment, int64_t token, Cursor *at) {
    int64_t kept = token / STATE_TOKENS, begin = kept * (STATE_TOKENS / 2), word = token / 2;
    if (at->word < begin || at->word > word) *at = (Cursor){joined(loud->states + kept * 2), begin};
    for (; at->word < word; at->word++) at->state = at->state * MULTIPLIER + increment;
    uint128_t state = at->state;
    return (uint32_t)(next_word(&state, increment) >> 32 * (token % 2));
}

static void add_noise(NoisyRow *row, const int32_t *tokens, const float *noise, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int32_t token = tokens[i];
        float logit = logit_at(row->block, row->first + token);
        if (row->scores) {
            row->scores[token] = logit + row->temperature * noise[i];
            continue;
        }
        float sum = logit / row->temperature + noise[i];
        if (sum > row->best || (sum == row->best && token < row->token)) row->best = sum, row->token = token;
    }
}

static void add_waiting(NoisyRow *row) {
    float noise[PENDING];
    gumbel(row->bits, row->waiting, noise);
    add_noise(row, row->tokens, noise, row->waiting);
    row->waiting = 0;
}

/* Adds noise to the loud tokens of the row of this index, and to those whose logits are above the border. */
static void add_row_noise(NoisyRow *row, const RowNoise *noise, int64_t index, float border) {
    const DraftBlock *block = row->block;
    const LoudTokens *loud = noise->loud + index;
    uint128_t increment = joined(noise->stream.increment);
    add_noise(row, loud->tokens, loud->noise, loud->count);
    row->at.word = -1;
    for (int64_t i = 0; i < block->vocabulary; i += LANES) {
        int64_t left = block->vocabulary - i, count = left < LANES ? left : LANES;
        if (count == LANES && !f32_any_greater(logits_at(block, row->first + i), f32_set1(border))) continue;
        for (int64_t token = i; token < i + count; token++) {
            if (!(logit_at(block, row->first + token) > border)) continue;
            row->tokens[row->waiting] = (int32_t)token;
            row->bits[row->waiting++] = bits_of(loud, increment, token, &row->at);
            if (row->waiting == PENDING) add_waiting(row);
        }
    }
    add_waiting(row);
}

/* The token with the largest sum of logit / temperature and noise in the row of a block, the first of equals, and that sum and
 * the largest logit in `sums`. -1 where a logit is NaN or the largest is not finite. */
int64_t largest_sum(const DraftBlock *block, const RowNoise *noise, float *sums) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    NoisyRow row = {.block = block, .temperature = noise->temperature, .best = -INFINITY, .token = -1};
    float top = largest_logit(block, 0, NULL);
    if (top == top) add_row_noise(&row, noise, 0, top - noise->near);
    sums[0] = row.best, sums[1] = top;
    return row.token;
}

typedef struct {
    const DraftBlock *block;
    const RowNoise *noise;
    float *scores;
} NoisyRows;

static void noisy_rows_share(void *argument, Thread thread) {
    const NoisyRows *call = argument;
    int64_t vocabulary = call->block->vocabulary;
    Range own = split(call->block->rows, thread);
    for (int64_t r = own.begin; r < own.end; r++) {
        NoisyRow row = {.block = call->block, .first = r * vocabulary, .temperature = call->noise->temperature};
        row.scores = call->scores + row.first;
        float top = largest_logit(row.block, row.first, row.scores);
        add_row_noise(&row, call->noise, r, top - call->noise->near); /* none is near if it is NaN */
    }
}

/* scores [rows, vocabulary]: the logits, plus the temperature times the noise of the tokens that are near or loud. */
void noisy_rows(const DraftBlock *block, const RowNoise *noise, float *scores, int64_t threads) {
    parallel(threads, noisy_rows_share, &(NoisyRows){block, noise, scores});
}

/* Finds the tokens of a position whose bits are above `border`, ascending, as many as `loud` has room for. Returns how many
 * there are. */
int64_t find_loud(const NoiseStream *stream, int64_t position, int64_t vocabulary, int64_t border, LoudTokens *loud) {
    uint128_t state = position_start(stream, position), increment = joined(stream->increment);
    int64_t room = loud->count, count = 0, added = 0;
    uint32_t bits[PENDING];
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    for (int64_t token = 0; token < vocabulary; token += 2) {
        if (token % STATE_TOKENS == 0) memcpy(loud->states + token / STATE_TOKENS * 2, &state, sizeof state);
        uint64_t word = next_word(&state, increment);
        if ((int64_t)(uint32_t)word <= border && (int64_t)(word >> 32) <= border) continue;
        for (int64_t half = 0; half < 2 && token + half < vocabulary; half++, word >>= 32) {
            if ((int64_t)(uint32_t)word <= border || count++ >= room) continue;
            loud->tokens[count - 1] = (int32_t)(token + half), bits[count - 1 - added] = (uint32_t)word;
            if (count - added < PENDING) continue;
            gumbel(bits, PENDING, loud->noise + added);
            added = count;
        }
    }
    loud->count = count < room ? count : room;
    gumbel(bits, loud->count - added, loud->noise + added);
    return count;
}

#endif
