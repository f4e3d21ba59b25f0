/* The records of a forward pass: the weights of a model, and the rows of a batch. */
#ifndef ORTHRUS_FORWARD_STRUCTS_H
#define ORTHRUS_FORWARD_STRUCTS_H

#include <stdint.h>

#include "kv_cache.h"
#include "linear_weights.h"
#include "simd.h"

enum { VIEW_AR, VIEW_DIFFUSION, NUM_VIEWS };

typedef struct {
    const scalar_t *q_norm, *k_norm;
} HeadNorms;

typedef struct {
    LinearWeights qkv, o;
} AttentionWeights;

/* Norms and linear maps of one layer. Norms of heads are null where the model has none. */
typedef struct {
    const scalar_t *attention_norm, *mlp_norm;
    HeadNorms head_norms[NUM_VIEWS];
    AttentionWeights attention[NUM_VIEWS];
    LinearWeights gate_up, down;
} LayerWeights;

/* What else a pass reads: embedding [vocabulary, hidden], cos and signed sin [positions, head_dim], the final norm. */
typedef struct {
    const scalar_t *embedding;
    const float *cos, *sin;
    const scalar_t *final_norm;
} SharedWeights;

/* The rows of one view, padding last: `padded_rows` of its linear maps, `rows` without padding. tokens [padded_rows];
 * slot_mapping [3][rows] (see rope.h); positions, kv_lens [rows]. */
typedef struct {
    int64_t view, padded_rows, rows;
    const int64_t *tokens, *slot_mapping, *positions;
    const Segment *segments;
    int64_t num_segments;
    const int64_t *kv_lens;
} ViewRows;

/* Sizes of a pass. `rows` counts those of all views, padding included; the final norm is computed for `num_logit_rows` of
 * them, logits for the first `num_logits` of those. Strides of the cache are in scalars. */
typedef struct {
    int64_t layers, views, rows, num_logit_rows, num_logits, hidden, intermediate, heads, kv_heads, head_dim;
    int64_t sequence_stride, head_stride, layer_stride, threads;
} PassDims;

/* What a pass spends its time on, in the order of `phase_seconds`. */
enum {
    PHASE_NORMS, PHASE_QKV, PHASE_ROPE, PHASE_ATTENTION, PHASE_O, PHASE_GATE_UP, PHASE_DOWN, PHASE_LOGITS, NUM_PHASES
};

#endif
