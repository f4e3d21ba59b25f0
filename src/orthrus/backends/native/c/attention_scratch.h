/* The memory that a thread uses while it attends. */
#ifndef ORTHRUS_ATTENTION_SCRATCH_H
#define ORTHRUS_ATTENTION_SCRATCH_H

#include <stdint.h>

#include "simd.h"

/* In pairs: instructions sum the products of two pairs of bf16. Elsewhere all is multiplied in fp32: bf16 queries are expanded in
 * advance, keys and values where they are used, and weights are rounded to bf16 but stay in fp32. */
#if defined(BFLOAT16) && defined(HAVE_BF16_DOT)
#define ATTENTION_IN_PAIRS
typedef scalar_t query_t;
#else
typedef float query_t;
#endif

/* Keys are read in chunks whose borders depend on the position alone. */
enum { KEY_CHUNK = 256 };

/* Per query row: weights [KEY_CHUNK], sums [head_dim], the largest score and the denominator so far, the factor by which the
 * last chunk rescaled them, and how many keys of the chunk are visible, but for so many hidden ones at its start. Besides:
 * the rows of q one after another, the last tile padded with zeros, and the chunk of keys transposed; values take the same room
 * after the keys. tree: room for the scores [KEY_CHUNK] or sums [head_dim] of rows of a tree. */
typedef struct {
    float *weights, *tree, *sums, *max, *denominator, *rescale;
    int64_t *visible, *hidden;
    query_t *queries;
    int32_t *packed_keys;
} AttentionScratch;

static inline int64_t tree_columns(int64_t size) { return size > KEY_CHUNK ? size : KEY_CHUNK; }

/* Bytes for `rows` query rows of one head. */
static inline int64_t attention_scratch_bytes(int64_t rows, int64_t size) {
    int64_t floats = KEY_CHUNK + tree_columns(size) + size + 3;
    int64_t row_bytes = sizeof(float) * floats + sizeof(query_t) * size + 2 * sizeof(int64_t);
    return (rows + 15) / 16 * 16 * row_bytes + 4 * KEY_CHUNK * size + 512;
}

static inline AttentionScratch attention_scratch(char *memory, int64_t rows, int64_t size) {
    AttentionScratch scratch;
    rows = (rows + 15) / 16 * 16;
    scratch.packed_keys = (int32_t *)memory, memory += 4 * KEY_CHUNK * size;
    scratch.queries = (query_t *)memory, memory += rows * size * (int64_t)sizeof(query_t);
    scratch.visible = (int64_t *)memory, memory += rows * (int64_t)sizeof(int64_t);
    scratch.hidden = (int64_t *)memory, memory += rows * (int64_t)sizeof(int64_t);
    scratch.weights = (float *)memory, scratch.tree = scratch.weights + rows * KEY_CHUNK;
    scratch.sums = scratch.tree + rows * tree_columns(size);
    scratch.max = scratch.sums + rows * size;
    scratch.denominator = scratch.max + rows, scratch.rescale = scratch.denominator + rows;
    return scratch;
}

#endif
