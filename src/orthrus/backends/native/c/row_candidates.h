/* The likeliest tokens of many rows of logits, for the training of a draft head. */
#ifndef ORTHRUS_ROW_CANDIDATES_H
#define ORTHRUS_ROW_CANDIDATES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "draft_tree.h"
#include "team.h"
#include "threads.h"

static const float LEAST_REST = 1e-7f;

/* block: logits, rows and vocabulary. inverses [count]: inverse temperatures. */
typedef struct {
    const DraftBlock *block;
    const float *inverses;
    int64_t count;
    int64_t *tokens;
    float *logits, *rests;
} CandidateRows;

static void row_candidates_share(void *argument, Thread thread) {
    const CandidateRows *call = argument;
    Range own = split(call->block->rows, thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        RowCandidates row;
        for (int64_t i = 0; i < call->count; i++) {
            float inverse = call->inverses[i];
            scan_row(call->block, n, inverse, &row);
            float rest = row.sum, least = LEAST_REST * row.sum;
            for (int64_t c = 0; c < CANDIDATES; c++) rest -= fast_exp((row.logits[c] - row.max) * inverse);
            call->rests[n * call->count + i] = row.max * inverse + logf(rest > least ? rest : least);
        }
        memcpy(call->tokens + n * CANDIDATES, row.tokens, sizeof row.tokens);
        memcpy(call->logits + n * CANDIDATES, row.logits, sizeof row.logits);
    }
}

/* Tokens and logits [rows, CANDIDATES] of the candidates of each row, and rests [rows, count]: for each inverse temperature,
 * the log of the sum of exp(inverse * x) over all other tokens, whose share of the sum over all is at least LEAST_REST. The
 * logits must be finite, and at least CANDIDATES. */
void row_candidates(const DraftBlock *block, const float *inverses, int64_t count, int64_t *tokens, float *logits,
                    float *rests, int64_t threads) {
    parallel(threads, row_candidates_share, &(CandidateRows){block, inverses, count, tokens, logits, rests});
}

#endif
