/* A whole forward pass in one call, from tokens to logits, by one team of threads: a barrier between two operations costs
 * less than a return to Python. The rows go through the same functions as in separate calls, so they have the same bits. */
#ifndef ORTHRUS_FORWARD_H
#define ORTHRUS_FORWARD_H

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "attention.h"
#include "barrier.h"
#include "embedding.h"
#include "forward_linear.h"
#include "forward_structs.h"
#include "rms_norm.h"
#include "rope.h"
#include "simd.h"
#include "team.h"
#include "threads.h"


static int64_t longest_row(const ModelWeights *model) {
    int64_t heads = model->heads * model->head_dim;
    int64_t longest = model->hidden > model->intermediate ? model->hidden : model->intermediate;
    return longest > heads ? longest : heads;
}

/* Bytes of scratch memory of one thread, for attention or for products. */
static int64_t thread_scratch_bytes(const ModelWeights *model) {
    int64_t attention = attention_scratch_bytes(ATTENTION_MAX_ROWS * (model->heads / model->kv_heads), model->head_dim);
    int64_t products = linear_scratch_scalars(longest_row(model)) * (int64_t)sizeof(scalar_t);
    return ((attention > products ? attention : products) + 127) / 64 * 64;
}

/* Bytes of the workspace that `forward` must be given. */
int64_t forward_workspace_bytes(const ModelWeights *model, int64_t rows, int64_t threads) {
    int64_t q = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim, longest = longest_row(model);
    int64_t row_scalars = 3 * model->hidden + 3 * q + 2 * kv + 3 * model->intermediate;
    int64_t quantized = longest + (int64_t)sizeof(float) + longest / GROUP * (int64_t)sizeof(RowGroup);
    int64_t row_bytes = row_scalars * (int64_t)sizeof(scalar_t) + quantized;
    return rows * row_bytes + threads * thread_scratch_bytes(model);
}

/* Activations of all rows: hidden, normed, delta [rows, hidden]; qkv; q, attended [rows, heads, head_dim]; gate_up, gated. */
typedef struct {
    char *scratch;
    scalar_t *hidden, *normed, *delta, *qkv, *q, *attended, *gated, *gate_up;
    QuantizedRows quantized;
} Workspace;

static Workspace workspace_in(char *memory, const ModelWeights *model, int64_t rows, int64_t threads) {
    Workspace space = {.scratch = memory};
    int64_t q = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim;
    space.hidden = (scalar_t *)(memory + threads * thread_scratch_bytes(model));
    space.normed = space.hidden + rows * model->hidden, space.delta = space.normed + rows * model->hidden;
    space.qkv = space.delta + rows * model->hidden;
    space.q = space.qkv + rows * (q + 2 * kv), space.attended = space.q + rows * q;
    space.gated = space.attended + rows * q, space.gate_up = space.gated + rows * model->intermediate;
    space.quantized.codes = (uint8_t *)(space.gate_up + 2 * rows * model->intermediate);
    space.quantized.scales = (float *)(space.quantized.codes + rows * longest_row(model));
    space.quantized.groups = (RowGroup *)(space.quantized.scales + rows);
    memset(space.q, 0, 2 * rows * q * (int64_t)sizeof(scalar_t)); /* padding rows stay zero */
    return space;
}

/* A pass as one thread of the team sees it. */
typedef struct {
    const ModelWeights *model;
    const ForwardBatch *batch;
    const Workspace *space;
    char *scratch;
    Thread thread;
    Range rows; /* this thread's, in operations on single rows */
    Barrier *barrier;
    double *phase_seconds, phase_start;
} Pass;

/* Waits until all threads are done with a phase, and adds the seconds since the last one to it where they are asked for. */
static inline void end_phase(Pass *pass, int phase) {
    barrier_wait(pass->barrier, pass->thread.count);
    if (!pass->phase_seconds || pass->thread.index) return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    if (phase < NUM_PHASES) pass->phase_seconds[phase] += seconds - pass->phase_start;
    pass->phase_start = seconds;
}

/* All rows of a view, padding included: those of the views lie one after another. */
static inline Range view_range(const ViewRows *views, int64_t view) {
    int64_t first = 0;
    for (int64_t v = 0; v < view; v++) first += views[v].padded_rows;
    return (Range){first, first + views[view].padded_rows};
}

/* The thread's rows of one view. */
static inline Range own_rows(const Pass *pass, int64_t view) {
    return intersection(pass->rows, view_range(pass->batch->views, view));
}

static void embed(const Pass *pass) {
    const ForwardBatch *batch = pass->batch;
    int64_t D = pass->model->hidden;
    for (int64_t v = 0; v < batch->num_views; v++) {
        Range own = own_rows(pass, v);
        int64_t first = view_range(batch->views, v).begin;
        scalar_t *hidden = pass->space->hidden + own.begin * D;
        int64_t rows = own.end - own.begin, scalars = rows * D;
        embedding_rows(&pass->model->embedding, batch->views[v].tokens + own.begin - first, hidden, rows);
        float scale = pass->model->embedding_scale;
        for (int64_t i = 0; scale != 1.0f && i < scalars; i++) hidden[i] = from_float(to_float(hidden[i]) * scale);
    }
}

/* hidden += delta where there is one; normed = norm(hidden), or a copy where the model has no norm there, for the thread's
 * rows. */
static void norm_rows(const Pass *pass, const scalar_t *delta, const scalar_t *weight) {
    int64_t D = pass->model->hidden, first = pass->rows.begin * D;
    if (!weight) {
        int64_t scalars = (pass->rows.end - pass->rows.begin) * D;
        if (delta) add_row(pass->space->hidden + first, delta + first, scalars);
        memcpy(pass->space->normed + first, pass->space->hidden + first, scalars * sizeof(scalar_t));
        return;
    }
    rms_norm(pass->space->hidden + first, delta ? delta + first : 0, weight, pass->space->normed + first,
             pass->rows.end - pass->rows.begin, D, pass->model->norm_eps, pass->model->norm_offset);
}

/* delta = norm(delta) * residual_scale for the thread's rows, where the model has such a norm or scale. */
static void finish_update(const Pass *pass, const scalar_t *weight) {
    int64_t D = pass->model->hidden, rows = pass->rows.end - pass->rows.begin;
    scalar_t *delta = pass->space->delta + pass->rows.begin * D;
    float scale = pass->model->residual_scale;
    if (weight) rms_norm(delta, 0, weight, delta, rows, D, pass->model->norm_eps, pass->model->norm_offset);
    for (int64_t i = 0; scale != 1.0f && i < rows * D; i++) delta[i] = from_float(to_float(delta[i]) * scale);
}

/* The thread's outputs of a map for `rows` rows from row `first` on. */
static void linear_share(const Pass *pass, const LinearWeights *w, const scalar_t *x, scalar_t *y, int64_t first,
                         int64_t rows) {
    QuantizedRows quantized = quantized_from(w, pass->space->quantized, first);
    Range outputs = split_outputs(w->outputs, pass->thread);
    linear_range(w, x + first * w->inputs, quantized, y + first * w->outputs, rows, outputs, pass->scratch);
}

/* Keys, values and rotated queries of one view, whose first row is `first`. */
static void rope_share(const Pass *pass, const LayerWeights *layer, const ViewRows *view, int64_t first,
                       const KVCache *cache) {
    int64_t heads = pass->model->heads, size = pass->model->head_dim;
    const HeadNorms *norms = layer->head_norms + view->view;
    const RopeParams rope = {
        norms->q_norm, norms->k_norm, pass->batch->cos[layer->rope], pass->batch->sin[layer->rope], view->positions,
        pass->model->norm_eps, pass->model->norm_offset,
    };
    const scalar_t *qkv = pass->space->qkv + first * (heads + 2 * cache->kv_heads) * size;
    scalar_t *q = pass->space->q + first * heads * size;
    Range own = split(view->rows, pass->thread);
    rope_and_cache_write_rows(qkv, q, heads, &rope, view->slot_mapping, cache, view->rows, own);
}

static void attention_layer(Pass *pass, const LayerWeights *layer, const KVCache *cache) {
    const Workspace *space = pass->space;
    const ViewRows *views = pass->batch->views;
    int64_t heads = pass->model->heads, num_views = pass->batch->num_views;
    for (int64_t v = 0; v < num_views; v++)
        quantize_for(&layer->attention[views[v].view].qkv, space->normed, space->quantized, own_rows(pass, v));
    end_phase(pass, PHASE_NORMS);
    for (int64_t v = 0; v < num_views; v++) {
        const LinearWeights *qkv = &layer->attention[views[v].view].qkv;
        linear_share(pass, qkv, space->normed, space->qkv, view_range(views, v).begin, views[v].padded_rows);
    }
    end_phase(pass, PHASE_QKV);
    for (int64_t v = 0; v < num_views; v++) rope_share(pass, layer, views + v, view_range(views, v).begin, cache);
    end_phase(pass, PHASE_ROPE);
    for (int64_t v = 0; v < num_views; v++) {
        int64_t offset = view_range(views, v).begin * heads * cache->head_dim;
        AttentionMetadata metadata = views[v].attention;
        metadata.kv_starts = views[v].kv_starts[layer->window];
        const AttentionCall call = {space->q + offset, space->attended + offset, heads, cache, &metadata};
        attention_share(&call, pass->scratch, pass->thread);
    }
    end_phase(pass, PHASE_ATTENTION);
    for (int64_t v = 0; v < num_views; v++)
        quantize_for(&layer->attention[views[v].view].o, space->attended, space->quantized, own_rows(pass, v));
    end_phase(pass, PHASE_O);
    for (int64_t v = 0; v < num_views; v++) {
        const LinearWeights *o = &layer->attention[views[v].view].o;
        linear_share(pass, o, space->attended, space->delta, view_range(views, v).begin, views[v].padded_rows);
    }
    end_phase(pass, PHASE_O);
}

static void mlp_layer(Pass *pass, const LayerWeights *layer) {
    const Workspace *space = pass->space;
    int64_t rows = pass->batch->rows;
    finish_update(pass, layer->post_attention_norm);
    norm_rows(pass, space->delta, layer->mlp_norm);
    quantize_for(&layer->gate_up, space->normed, space->quantized, pass->rows);
    end_phase(pass, PHASE_NORMS);
    gate_up_share(&layer->gate_up, space->normed, space->quantized, space->gate_up, space->gated, rows,
                  pass->model->activation, pass->scratch, pass->thread);
    end_phase(pass, PHASE_GATE_UP);
    if (reads_int8(&layer->down)) {
        quantize_for(&layer->down, space->gated, space->quantized, pass->rows);
        end_phase(pass, PHASE_DOWN);
    }
    linear_share(pass, &layer->down, space->gated, space->delta, 0, rows);
    end_phase(pass, PHASE_DOWN);
    finish_update(pass, layer->post_mlp_norm);
}

/* Final norms of the rows in `logit_rows` to `hidden`, and the logits of the first of them. */
static void logits_layer(Pass *pass, scalar_t *hidden, scalar_t *logits) {
    const ForwardBatch *batch = pass->batch;
    const ModelWeights *model = pass->model;
    int64_t D = model->hidden;
    Range own = split(batch->num_logit_rows, pass->thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        int64_t at = batch->logit_rows[n] * D;
        rms_norm(pass->space->hidden + at, pass->space->delta + at, model->final_norm, hidden + n * D, 1, D, model->norm_eps,
                 model->norm_offset);
    }
    quantize_for(&model->head, hidden, pass->space->quantized, intersection(own, (Range){0, batch->num_logits}));
    end_phase(pass, PHASE_NORMS);
    linear_share(pass, &model->head, hidden, logits, 0, batch->num_logits);
    end_phase(pass, PHASE_LOGITS);
}

typedef struct {
    const ModelWeights *model;
    const ForwardBatch *batch;
    const Workspace *space;
    scalar_t *hidden, *logits;
    double *phase_seconds;
    Barrier barrier;
} ForwardCall;

static void forward_share(void *argument, Thread thread) {
    ForwardCall *call = argument;
    const ModelWeights *model = call->model;
    const ForwardBatch *batch = call->batch;
    char *scratch = call->space->scratch + thread.index * thread_scratch_bytes(model);
    Range rows = split(batch->rows, thread);
    Pass pass = {model, batch, call->space, scratch, thread, rows, &call->barrier, call->phase_seconds, 0};
    end_phase(&pass, NUM_PHASES);
    embed(&pass);
    for (int64_t l = 0; l < model->num_layers; l++) {
        const LayerWeights *layer = model->layers + l;
        KVCache cache = batch->cache;
        cache.keys += l * batch->layer_stride, cache.values += l * batch->layer_stride;
        norm_rows(&pass, l ? call->space->delta : 0, layer->attention_norm);
        attention_layer(&pass, layer, &cache);
        mlp_layer(&pass, layer);
    }
    int finished_by_rows = model->layers[0].post_mlp_norm || model->residual_scale != 1.0f;
    if (finished_by_rows) end_phase(&pass, PHASE_NORMS); /* other threads need the finished updates */
    logits_layer(&pass, call->hidden, call->logits);
}

/* All rows of a batch through all layers: final norms to hidden [num_logit_rows, hidden], logits [num_logits, vocabulary].
 * `phase_seconds` [NUM_PHASES] may be null. */
void forward(const ModelWeights *model, const ForwardBatch *batch, scalar_t *hidden, scalar_t *logits, char *workspace,
             double *phase_seconds, int64_t threads) {
    const Workspace space = workspace_in(workspace, model, batch->rows, threads);
    ForwardCall call = {model, batch, &space, hidden, logits, phase_seconds, {0}};
    parallel(threads, forward_share, &call);
}

#endif
