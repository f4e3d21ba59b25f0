/* The choice of a tree of drafts from the rows of a block. The reference implementation is backends/draft_tree.py.
 *
 * All threads scan rows for their candidates and compute what the head takes from rows alone; then one thread takes the
 * likeliest node that is left, again and again. The probabilities of a row are computed when the first node needs them, once
 * for every candidate of the row before. With the text before the block, what followed a path when it occurred before
 * corrects them and is a candidate too. */
#ifndef ORTHRUS_DRAFT_TREE_H
#define ORTHRUS_DRAFT_TREE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "draft_head.h"
#include "float_state.h"
#include "ngrams.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

enum { CANDIDATES = 8, SCANNED = 16 * LANES };

/* logits [rows, vocabulary], fp32 if `fp32`, else scalars; temperatures [rows]. hidden_states [.., hidden]: those of the
 * rows, after those of the row before the first where `first_token`, the token before the first row, is known (not -1).
 * nodes: the most that are taken. chain: whether a node has one child at most. context: the text up to the token before the
 * first row, or NULL. */
typedef struct {
    const void *logits;
    const scalar_t *hidden_states;
    const float *temperatures;
    int64_t rows, vocabulary, fp32, first_token, nodes, chain;
    const DraftContext *context;
} DraftBlock;

/* The tokens of the largest logits of a row, and max and the sum of exp((x - max) / temperature) of all its logits. */
typedef struct {
    float logits[CANDIDATES], max, sum;
    int64_t tokens[CANDIDATES], count;
} RowCandidates;

/* What may follow a path: a token at the depth `row`, whose parent is the node `parent`. path: its log probability, -INFINITY
 * once it is taken; own: that given its parent. choice: which candidate of its row it is, LOOKED_UP if it is none. */
enum { LOOKED_UP = -1 };
typedef struct {
    double path, own;
    int64_t token, parent, row, choice;
} Option;

/* The nodes of a tree: see `draft_tree`. */
typedef struct {
    int64_t *tokens, *parents;
    float *confidence;
    int64_t *looked_up;
} DraftNodes;

/* The state of one call. For each row: its candidates, its context, and log probabilities by the candidate before it. */
typedef struct {
    const DraftBlock *block;
    const DraftHead *head;
    const DraftNodes *nodes;
    RowCandidates *rows;
    float *contexts, *direction, *log_p, *activations;
    int32_t *columns;
    scalar_t *embedded;
    char *has_log_p;
    Option *options;
    int64_t num_options;
} TreeSearch;

static const float LARGEST_LOGIT = 1e30f;

static void insert_candidate(RowCandidates *row, float logit, int64_t token) {
    if (row->count < CANDIDATES) row->count++;
    int64_t place = row->count - 1;
    for (; place > 0 && logit > row->logits[place - 1]; place--) {
        row->logits[place] = row->logits[place - 1];
        row->tokens[place] = row->tokens[place - 1];
    }
    row->logits[place] = logit;
    row->tokens[place] = token;
}

/* A part of the logits of a row as fp32 between -2 and 1 times LARGEST_LOGIT, NaN as the least. Returns the largest. */
static float load_logits(const DraftBlock *block, int64_t start, int64_t count, float *part) {
    const float *floats = (const float *)block->logits + start;
    const scalar_t *scalars = (const scalar_t *)block->logits + start;
    float top = -2 * LARGEST_LOGIT;
    int64_t i = 0;
    f32x16 low = f32_set1(-2 * LARGEST_LOGIT), high = f32_set1(LARGEST_LOGIT), tops = low;
    for (; i + LANES <= count; i += LANES) {
        f32x16 x = block->fp32 ? f32_load(floats + i) : load_lanes(scalars + i);
        x = f32_min(f32_max(x, low), high); /* of NaN and `low`, `low` */
        tops = f32_max(tops, x);
        f32_store(part + i, x);
    }
    top = f32_reduce_max(tops);
    for (; i < count; i++) {
        float x = block->fp32 ? floats[i] : to_float(scalars[i]);
        part[i] = x > -2 * LARGEST_LOGIT ? x < LARGEST_LOGIT ? x : LARGEST_LOGIT : -2 * LARGEST_LOGIT;
        top = part[i] > top ? part[i] : top;
    }
    for (; i < SCANNED; i++) part[i] = -2 * LARGEST_LOGIT;
    return top;
}

/* The sum of exp((x - max) * inverse). */
static float sum_exp(const float *part, float max, float inverse) {
    f32x16 sums = f32_zero(), over = f32_set1(inverse * 1.44269504f), top = f32_set1(max);
    for (int64_t i = 0; i < SCANNED; i += LANES)
        sums = f32_add(sums, fast_exp2_lanes(f32_mul(f32_sub(f32_load(part + i), top), over)));
    return f32_reduce_add(sums);
}

/* Inserts what is larger than the least candidate of the row. Lanes are looked at only where one of sixteen may be. */
static void insert_candidates(RowCandidates *row, const float *part, int64_t start, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        float least = row->count < CANDIDATES ? -2 * LARGEST_LOGIT : row->logits[CANDIDATES - 1];
        if (!f32_any_greater(f32_load(part + i), f32_set1(least))) continue;
        for (int64_t l = i; l < i + LANES && l < count; l++)
            if (part[l] >= -LARGEST_LOGIT && (row->count < CANDIDATES || part[l] > row->logits[CANDIDATES - 1]))
                insert_candidate(row, part[l], start + l);
    }
}

static void scan_row(const DraftBlock *block, int64_t index, float inverse, RowCandidates *row) {
    float part[SCANNED];
    *row = (RowCandidates){.max = -2 * LARGEST_LOGIT};
    for (int64_t start = 0; start < block->vocabulary; start += SCANNED) {
        int64_t left = block->vocabulary - start, count = left < SCANNED ? left : SCANNED;
        float top = load_logits(block, index * block->vocabulary + start, count, part);
        if (row->count < CANDIDATES || top > row->logits[CANDIDATES - 1]) insert_candidates(row, part, start, count);
        if (top > row->max) {
            row->sum *= fast_exp((row->max - top) * inverse);
            row->max = top;
        }
        row->sum += sum_exp(part, row->max, inverse);
    }
}

/* The log probabilities of the candidates of a row after `token`, the candidate `before` of the row before it or LOOKED_UP. */
static const float *row_log_p(TreeSearch *search, int64_t index, int64_t before, int64_t token) {
    const DraftBlock *block = search->block;
    const DraftHead *head = index > 0 || block->first_token >= 0 ? search->head : NULL;
    const RowCandidates *row = search->rows + index;
    int64_t place = !head ? index * CANDIDATES : before == LOOKED_UP ? block->rows * CANDIDATES : index * CANDIDATES + before;
    float *log_p = search->log_p + place * CANDIDATES, inverse = 1.0f / block->temperatures[index];
    if (search->has_log_p[place]) return log_p;
    float scaled[CANDIDATES], max = row->max * inverse, sum, rest = row->sum;
    if (head) {
        const float *context = search->contexts + index * head->units;
        head_direction(head, context, token, search->activations, search->embedded, search->direction);
    }
    for (int64_t c = 0; c < row->count; c++) {
        rest -= fast_exp((row->logits[c] - row->max) * inverse);
        float correction = head ? head_correction(head, search->direction, row->tokens[c], search->embedded) : 0;
        scaled[c] = (row->logits[c] + correction) * inverse;
        max = scaled[c] > max ? scaled[c] : max;
    }
    sum = (rest > 0 ? rest : 0) * fast_exp(row->max * inverse - max);
    for (int64_t c = 0; c < row->count; c++) sum += fast_exp(scaled[c] - max);
    for (int64_t c = 0; c < row->count; c++) log_p[c] = scaled[c] - max - logf(sum);
    search->has_log_p[place] = place < block->rows * CANDIDATES; /* others are not kept */
    return log_p;
}

/* The match of the text and the path to a node. */
static Match match_of(const TreeSearch *search, int64_t node) {
    const DraftContext *context = search->block->context;
    int32_t suffix[LONGEST_MATCH];
    int64_t count = 0;
    for (; node >= 0 && count < LONGEST_MATCH; node = search->nodes->parents[node])
        suffix[count++] = (int32_t)search->nodes->tokens[node];
    for (int64_t i = context->length - 1; i >= 0 && count < LONGEST_MATCH; i--) suffix[count++] = context->text[i];
    return longest_match(context, suffix, count);
}

static void add_option(TreeSearch *search, double path, double own, int64_t token, int64_t parent, int64_t row, int64_t choice) {
    search->options[search->num_options++] = (Option){path + own, own, token, parent, row, choice};
}

/* Adds what may follow a node, which was the option `taken`, or the root: all, or in a chain the likeliest. */
static void add_children(TreeSearch *search, int64_t node, Option taken) {
    int64_t row = taken.row + 1, count = row < search->block->rows ? search->rows[row].count : 0, first = search->num_options;
    const DraftContext *own = search->block->context, *context = own && row >= own->first ? own : NULL;
    const float *log_p = count ? row_log_p(search, row, taken.choice, taken.token) : NULL;
    Match match = context ? match_of(search, node) : (Match){0};
    int drafted = match.length == 0;
    for (int64_t c = 0; c < count; c++) {
        int64_t token = search->rows[row].tokens[c];
        if (!(log_p[c] > -INFINITY)) continue; /* NaN too, which damaged weights give */
        drafted |= token == match.token;
        add_option(search, taken.path, context ? weighed(context, log_p[c], match, token) : log_p[c], token, node, row, c);
    }
    if (!drafted)
        add_option(search, taken.path, undrafted(context, match, log_p, count), match.token, node, row, LOOKED_UP);
    if (search->block->chain && search->num_options > first) {
        for (int64_t i = first + 1; i < search->num_options; i++)
            if (search->options[i].own > search->options[first].own) search->options[first] = search->options[i];
        search->num_options = first + 1;
    }
}

/* The contexts of all rows that have a row before them, for some units. */
static void contexts(TreeSearch *search, Range steps) {
    const DraftHead *head = search->head;
    int64_t known = search->block->first_token >= 0, S = search->block->rows + known, step = unit_step(head);
    Range units = {steps.begin * step, steps.end * step};
    head_contexts(head, units, search->block->hidden_states, search->columns, S, search->contexts + (1 - known) * head->units);
}

static int64_t likeliest(const TreeSearch *search) {
    int64_t best = 0;
    for (int64_t i = 1; i < search->num_options; i++)
        if (search->options[i].path > search->options[best].path) best = i;
    return best;
}

static int64_t take_nodes(TreeSearch *search) {
    const DraftNodes *nodes = search->nodes;
    int64_t taken = 0;
    if (search->head) begin_directions(search->head);
    add_children(search, -1, (Option){.token = search->block->first_token, .row = -1});
    while (taken < search->block->nodes && search->num_options) {
        Option *best = search->options + likeliest(search), node = *best;
        if (node.path == -INFINITY) break;
        best->path = -INFINITY;
        nodes->tokens[taken] = node.token;
        nodes->parents[taken] = node.parent;
        nodes->confidence[taken] = (float)exp(node.own);
        nodes->looked_up[taken] = node.choice == LOOKED_UP;
        if (++taken < search->block->nodes) add_children(search, taken - 1, node);
    }
    if (search->head) end_directions(search->head);
    return taken;
}

/* Memory of a call, in one piece. */
static void *allocate(TreeSearch *search) {
    const DraftBlock *block = search->block;
    int64_t units = search->head ? search->head->units : 0, hidden = search->head ? search->head->hidden : 0;
    int64_t rows = block->rows, places = rows * CANDIDATES + 1, options = (block->nodes + 1) * (CANDIDATES + 1);
    int64_t floats = rows * units + hidden + places * CANDIDATES + units, words = hidden / 2 * (rows + 1) + hidden;
    char *memory = malloc(options * sizeof(Option) + rows * sizeof(RowCandidates) + (floats + words) * sizeof(float) + places);
    if (!memory) return NULL;
    search->options = (Option *)memory;
    search->rows = (RowCandidates *)(search->options + options);
    search->contexts = (float *)(search->rows + rows);
    search->direction = search->contexts + rows * units;
    search->log_p = search->direction + hidden;
    search->activations = search->log_p + places * CANDIDATES;
    search->columns = (int32_t *)(search->activations + units);
    search->embedded = (scalar_t *)(search->columns + words - hidden);
    search->has_log_p = (char *)(search->columns + words);
    memset(search->has_log_p, 0, places);
    return memory;
}

static void scan_share(void *argument, Thread thread) {
    TreeSearch *search = argument;
    Range rows = split(search->block->rows, thread);
    if (search->head) contexts(search, split(search->head->units / unit_step(search->head), thread));
    for (int64_t row = rows.begin; row < rows.end; row++)
        scan_row(search->block, row, 1.0f / search->block->temperatures[row], search->rows + row);
}

/* Writes tokens, parents, confidence and whether they are from the text alone of at most block->nodes nodes. Returns their
 * number, -1 without memory. head may be NULL. */
int64_t draft_tree(const DraftBlock *block, const DraftHead *head, const DraftNodes *nodes, int64_t threads) {
    TreeSearch search = {.block = block, .head = head, .nodes = nodes};
    int64_t S = block->rows + (block->first_token >= 0);
    void *memory = allocate(&search);
    if (!memory) return -1;
    if (head) pack_states(head, block->hidden_states, S, search.columns);
    if (block->rows) parallel(threads, scan_share, &search);
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    int64_t taken = take_nodes(&search);
    free(memory);
    return taken;
}

#endif
