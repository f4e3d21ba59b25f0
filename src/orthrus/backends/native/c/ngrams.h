/* What followed the newest tokens of a text when they occurred in it before. The reference implementation is ngrams.py. */
#ifndef ORTHRUS_NGRAMS_H
#define ORTHRUS_NGRAMS_H

#include <math.h>
#include <stdint.h>

#include "simd.h"

enum { LONGEST_MATCH = 8 };

/* What is added to the log-odds of a draft that the match agrees with, as a number and as a multiple of the log-odds; to
 * those of another draft; and the log-odds of the token of the match where it was not drafted. */
typedef struct {
    float agrees, slope, differs, fresh;
} Evidence;

/* text [length]. evidence: by length of the match from 1 to LONGEST_MATCH, first where not all occurrences go on alike, then
 * where they do. first: the first row to weigh. slope, shift: of the log-odds of a draft. new_slope: how much of the log-odds
 * of all that was not drafted is added to those of a token that was not; no_row: what these log-odds are below the last row.
 * Log probabilities are clamped between least and most; the probability of all that was not drafted is at least least_rest. */
typedef struct {
    const int32_t *text;
    int64_t length;
    const Evidence *evidence;
    int64_t first;
    float slope, shift, new_slope, no_row, least, most, least_rest;
} DraftContext;

/* token: what followed the newest occurrence of the longest n-gram. length: of the n-gram, 0 for none. alike: whether all
 * occurrences go on with the token. */
typedef struct {
    int64_t length;
    int32_t token, alike;
} Match;

/* The match of suffix [count], the newest token first. */
static Match longest_match(const DraftContext *context, const int32_t *suffix, int64_t count) {
    const int32_t *text = context->text;
    Match best = {0};
    for (int64_t end = count ? context->length - 1 : 0, start; end > 0; end = start) {
        int found = end < LANES;
        start = end < LANES ? 0 : end - LANES;
        if (!found)
            for (int l = 0; l < LANES; l++) found |= text[start + l] == suffix[0];
        if (!found) continue;
        for (int64_t i = end - 1; i >= start; i--) {
            int64_t length = 0;
            while (length < count && length <= i && text[i - length] == suffix[length]) length++;
            if (length > best.length) best = (Match){length, text[i + 1], 1};
            else if (length && length == best.length && text[i + 1] != best.token) best.alike = 0;
        }
    }
    return best;
}

static double log_sigmoid(double x) {
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

static const Evidence *evidence_of(const DraftContext *context, Match match) {
    return context->evidence + 2 * (match.length - 1) + match.alike;
}

static double log_odds(double log_p, double least, double most) {
    double clamped = log_p < least ? least : log_p > most ? most : log_p;
    return clamped - log(-expm1(clamped));
}

/* The log probability of a draft, by the match of its path. */
static double weighed(const DraftContext *context, double log_p, Match match, int64_t token) {
    double odds = log_odds(log_p, context->least, context->most), more = 0;
    if (match.length) {
        const Evidence *evidence = evidence_of(context, match);
        more = token == match.token ? evidence->agrees + evidence->slope * odds : evidence->differs;
    }
    return log_sigmoid(context->shift + context->slope * odds + more);
}

/* The log probability of the token of a match that was not drafted; log_p [count]: of the drafts, none below the last row. */
static double undrafted(const DraftContext *context, Match match, const float *log_p, int64_t count) {
    double odds = context->no_row, rest = 1;
    for (int64_t c = 0; c < count; c++) rest -= exp(log_p[c]);
    rest = rest > context->least_rest ? rest : context->least_rest;
    if (count) odds = log_odds(log(rest), context->least, context->most);
    return log_sigmoid(evidence_of(context, match)->fresh + context->new_slope * odds);
}

#endif
