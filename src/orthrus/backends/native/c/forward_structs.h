/* The records of a forward pass: the weights of a model, and the rows of a batch. */
#ifndef ORTHRUS_FORWARD_STRUCTS_H
#define ORTHRUS_FORWARD_STRUCTS_H

#include <stdint.h>

#include "embedding.h"
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

/* Norms and linear maps of one layer, and the places of its window and its rotary table in `ViewRows.kv_starts` and
 * `ForwardBatch.cos`. Norms are null where the model has none. */
typedef struct {
    const scalar_t *attention_norm, *mlp_norm, *post_attention_norm, *post_mlp_norm;
    int64_t window, rope;
    HeadNorms head_norms[NUM_VIEWS];
    AttentionWeights attention[NUM_VIEWS];
    LinearWeights gate_up, down;
} LayerWeights;

/* A model: the vectors of its tokens, its layers, the final norm and the head. */
typedef struct {
    EmbeddingTable embedding;
    const scalar_t *final_norm;
    const LayerWeights *layers;
    LinearWeights head;
    int64_t num_layers, hidden, intermediate, heads, kv_heads, head_dim, activation;
    float norm_eps, norm_offset, embedding_scale, residual_scale;
} ModelWeights;

/* The rows of one view, padding last: `padded_rows` of its linear maps, `rows` without padding. tokens [padded_rows];
 * slot_mapping [2][rows] (see rope.h); positions, kv_lens [rows]. */
typedef struct {
    int64_t view, padded_rows, rows;
    const int64_t *tokens, *slot_mapping, *positions;
    AttentionMetadata attention;
    const int64_t **kv_starts; /* per window, in place of that of `attention` */
} ViewRows;

/* The rows of all views, one view after another; `rows` counts them with padding. The final norm is computed for the
 * `num_logit_rows` rows in `logit_rows`, logits for the first `num_logits` of those. cos, signed sin [positions, head_dim];
 * `cache` is that of the first layer, those of the others lie `layer_stride` scalars apart. */
typedef struct {
    const ViewRows *views;
    const int64_t *logit_rows;
    int64_t num_views, rows, num_logit_rows, num_logits;
    const float **cos, **sin; /* per rotary table */
    KVCache cache;
    int64_t layer_stride;
} ForwardBatch;

/* What a pass spends its time on, in the order of `phase_seconds`. */
enum {
    PHASE_NORMS, PHASE_QKV, PHASE_ROPE, PHASE_ATTENTION, PHASE_O, PHASE_GATE_UP, PHASE_DOWN, PHASE_LOGITS, NUM_PHASES
};

#endif
