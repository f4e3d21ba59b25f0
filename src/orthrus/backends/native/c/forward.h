/* A whole forward pass in one call, from tokens to logits, by one team of threads: a barrier between two operations costs
 * less than a return to Python. The rows go through the same functions as in separate calls, so they have the same bits. */
#ifndef ORTHRUS_FORWARD_H
#define ORTHRUS_FORWARD_H

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "attention.h"
#include "barrier.h"
#include "float_state.h"
#include "forward_linear.h"
#include "forward_structs.h"
#include "rms_norm.h"
#include "rope.h"
#include "simd.h"
#include "threads.h"

#ifdef HAVE_FORWARD

int has_forward(void) { return 1; }

static int64_t longest_row(const PassDims *dims) {
    int64_t heads = dims->heads * dims->head_dim;
    int64_t longest = dims->hidden > dims->intermediate ? dims->hidden : dims->intermediate;
    return longest > heads ? longest : heads;
}

/* Bytes of scratch memory of one thread, for attention or for products. */
static int64_t thread_scratch_bytes(const PassDims *dims) {
    int64_t attention = attention_scratch_bytes(ATTENTION_MAX_ROWS * (dims->heads / dims->kv_heads), dims->head_dim);
    int64_t products = linear_scratch_scalars(longest_row(dims)) * (int64_t)sizeof(scalar_t);
    return ((attention > products ? attention : products) + 127) / 64 * 64;
}

/* Bytes of the workspace that `forward` must be given. */
int64_t forward_workspace_bytes(const PassDims *dims) {
    int64_t q = dims->heads * dims->head_dim, kv = dims->kv_heads * dims->head_dim, longest = longest_row(dims);
    int64_t row_scalars = 3 * dims->hidden + 3 * q + 2 * kv + 3 * dims->intermediate;
    int64_t row_bytes = row_scalars * (int64_t)sizeof(scalar_t) + longest + (1 + longest / GROUP) * (int64_t)sizeof(float);
    return dims->rows * row_bytes + dims->threads * thread_scratch_bytes(dims);
}

/* Activations of all rows: hidden, normed, delta [rows, hidden]; qkv; q, attended [rows, heads, head_dim]; gate_up, gated. */
typedef struct {
    char *scratch;
    scalar_t *hidden, *normed, *delta, *qkv, *q, *attended, *gated, *gate_up;
    QuantizedRows quantized;
} Workspace;

static Workspace workspace_in(char *memory, const PassDims *dims) {
    Workspace space = {.scratch = memory};
    int64_t rows = dims->rows, q = dims->heads * dims->head_dim, kv = dims->kv_heads * dims->head_dim;
    space.hidden = (scalar_t *)(memory + dims->threads * thread_scratch_bytes(dims));
    space.normed = space.hidden + rows * dims->hidden, space.delta = space.normed + rows * dims->hidden;
    space.qkv = space.delta + rows * dims->hidden;
    space.q = space.qkv + rows * (q + 2 * kv), space.attended = space.q + rows * q;
    space.gated = space.attended + rows * q, space.gate_up = space.gated + rows * dims->intermediate;
    space.quantized.codes = (uint8_t *)(space.gate_up + 2 * rows * dims->intermediate);
    space.quantized.scales = (float *)(space.quantized.codes + rows * longest_row(dims));
    space.quantized.sums = space.quantized.scales + rows;
    memset(space.q, 0, 2 * rows * q * (int64_t)sizeof(scalar_t)); /* padding rows stay zero */
    return space;
}

/* A pass as one thread of the team sees it. */
typedef struct {
    const PassDims *dims;
    const SharedWeights *shared;
    const ViewRows *views;
    const Workspace *space;
    char *scratch;
    Thread thread;
    Range rows; /* this thread's, in operations on single rows */
    float eps;
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
    return intersection(pass->rows, view_range(pass->views, view));
}

static void embed(const Pass *pass) {
    int64_t D = pass->dims->hidden;
    for (int64_t v = 0; v < pass->dims->views; v++) {
        Range own = own_rows(pass, v);
        const int64_t *tokens = pass->views[v].tokens - view_range(pass->views, v).begin;
        for (int64_t r = own.begin; r < own.end; r++)
            memcpy(pass->space->hidden + r * D, pass->shared->embedding + tokens[r] * D, D * sizeof(scalar_t));
    }
}

/* hidden += delta where there is one; normed = norm(hidden), for the thread's rows. */
static void norm_rows(const Pass *pass, const scalar_t *delta, const scalar_t *weight) {
    int64_t D = pass->dims->hidden, first = pass->rows.begin * D;
    rms_norm(pass->space->hidden + first, delta ? delta + first : 0, weight, pass->space->normed + first,
             pass->rows.end - pass->rows.begin, D, pass->eps);
}

/* The thread's outputs of a map for `rows` rows from row `first` on. */
static void linear_share(const Pass *pass, const LinearWeights *w, const scalar_t *x, scalar_t *y, int64_t first,
                         int64_t rows) {
    QuantizedRows quantized = rows_from(pass->space->quantized, first, w->inputs);
    Range outputs = split_outputs(w->outputs, pass->thread);
    linear_range(w, x + first * w->inputs, quantized, y + first * w->outputs, rows, outputs, pass->scratch);
}

/* Keys, values and rotated queries of one view, whose first row is `first`. */
static void rope_share(const Pass *pass, const LayerWeights *layer, const ViewRows *view, int64_t first,
                       const KVCache *cache) {
    const PassDims *dims = pass->dims;
    const HeadNorms *norms = layer->head_norms + view->view;
    const RopeParams rope = {
        norms->q_norm, norms->k_norm, pass->shared->cos, pass->shared->sin, view->positions, pass->eps,
    };
    const scalar_t *qkv = pass->space->qkv + first * (dims->heads + 2 * dims->kv_heads) * dims->head_dim;
    scalar_t *q = pass->space->q + first * dims->heads * dims->head_dim;
    Range own = split(view->rows, pass->thread);
    rope_and_cache_write_rows(qkv, q, dims->heads, &rope, view->slot_mapping, cache, view->rows, own);
}

static void attention_layer(Pass *pass, const LayerWeights *layer, const KVCache *cache) {
    const PassDims *dims = pass->dims;
    const Workspace *space = pass->space;
    const ViewRows *views = pass->views;
    for (int64_t v = 0; v < dims->views; v++)
        quantize_for(&layer->attention[views[v].view].qkv, space->normed, space->quantized, own_rows(pass, v));
    end_phase(pass, PHASE_NORMS);
    for (int64_t v = 0; v < dims->views; v++) {
        const LinearWeights *qkv = &layer->attention[views[v].view].qkv;
        linear_share(pass, qkv, space->normed, space->qkv, view_range(views, v).begin, views[v].padded_rows);
    }
    end_phase(pass, PHASE_QKV);
    for (int64_t v = 0; v < dims->views; v++) rope_share(pass, layer, views + v, view_range(views, v).begin, cache);
    end_phase(pass, PHASE_ROPE);
    for (int64_t v = 0; v < dims->views; v++) {
        const AttentionMetadata metadata = {views[v].segments, views[v].num_segments, views[v].kv_lens};
        int64_t offset = view_range(views, v).begin * dims->heads * dims->head_dim;
        attention_share(space->q + offset, space->attended + offset, dims->heads, cache, &metadata, pass->scratch,
                        pass->thread);
    }
    end_phase(pass, PHASE_ATTENTION);
    for (int64_t v = 0; v < dims->views; v++)
        quantize_for(&layer->attention[views[v].view].o, space->attended, space->quantized, own_rows(pass, v));
    end_phase(pass, PHASE_O);
    for (int64_t v = 0; v < dims->views; v++) {
        const LinearWeights *o = &layer->attention[views[v].view].o;
        linear_share(pass, o, space->attended, space->delta, view_range(views, v).begin, views[v].padded_rows);
    }
    end_phase(pass, PHASE_O);
}

static void mlp_layer(Pass *pass, const LayerWeights *layer) {
    const Workspace *space = pass->space;
    int64_t rows = pass->dims->rows;
    norm_rows(pass, space->delta, layer->mlp_norm);
    quantize_for(&layer->gate_up, space->normed, space->quantized, pass->rows);
    end_phase(pass, PHASE_NORMS);
    gate_up_share(&layer->gate_up, space->normed, space->quantized, space->gate_up, space->gated, rows, pass->scratch,
                  pass->thread);
    end_phase(pass, PHASE_GATE_UP);
    if (reads_int8(&layer->down)) {
        quantize_for(&layer->down, space->gated, space->quantized, pass->rows);
        end_phase(pass, PHASE_DOWN);
    }
    linear_share(pass, &layer->down, space->gated, space->delta, 0, rows);
    end_phase(pass, PHASE_DOWN);
}

/* Final norms of the rows in `logit_rows` to `out`, and the logits of the first of them. */
static void logits_layer(Pass *pass, const LinearWeights *head, const int64_t *logit_rows, scalar_t *out, scalar_t *logits) {
    int64_t D = pass->dims->hidden, num_logits = pass->dims->num_logits;
    Range own = split(pass->dims->num_logit_rows, pass->thread);
    for (int64_t n = own.begin; n < own.end; n++) {
        int64_t at = logit_rows[n] * D;
        rms_norm(pass->space->hidden + at, pass->space->delta + at, pass->shared->final_norm, out + n * D, 1, D, pass->eps);
    }
    quantize_for(head, out, pass->space->quantized, intersection(own, (Range){0, num_logits}));
    end_phase(pass, PHASE_NORMS);
    linear_share(pass, head, out, logits, 0, num_logits);
    end_phase(pass, PHASE_LOGITS);
}

/* The rows of all views, one after another, through all layers: final norms to out [num_logit_rows, hidden], logits
 * [num_logits, vocabulary]. The head lies behind the layers; keys and values are those of the first layer and sequence;
 * `phase_seconds` [NUM_PHASES] may be null. */
void forward(const LayerWeights *layers, const SharedWeights *shared, const ViewRows *views, const int64_t *logit_rows,
             scalar_t *keys, scalar_t *values, scalar_t *out, scalar_t *logits, char *memory, double *phase_seconds,
             const PassDims *dims, float eps) {
    const Workspace space = workspace_in(memory, dims);
    const LinearWeights *head = (const LinearWeights *)(layers + dims->layers);
    Barrier barrier = {0, 0};
#pragma omp parallel num_threads(dims->threads)
    {
        SCOPED_FLOAT_STATE caller = set_default_float_state();
        Thread thread = this_thread();
        char *scratch = space.scratch + thread.index * thread_scratch_bytes(dims);
        Range rows = split(dims->rows, thread);
        Pass pass = {dims, shared, views, &space, scratch, thread, rows, eps, &barrier, phase_seconds, 0};
        end_phase(&pass, NUM_PHASES);
        embed(&pass);
        for (int64_t l = 0; l < dims->layers; l++) {
            int64_t offset = l * dims->layer_stride;
            const KVCache cache = {
                keys + offset, values + offset, dims->kv_heads, dims->head_dim, dims->sequence_stride, dims->head_stride,
            };
            norm_rows(&pass, l ? space.delta : 0, layers[l].attention_norm);
            attention_layer(&pass, layers + l, &cache);
            mlp_layer(&pass, layers + l);
        }
        logits_layer(&pass, head, logit_rows, out, logits);
    }
}
#else
int has_forward(void) { return 0; }
#endif

#endif
