/* The key/value cache of one layer, and what the rows of a pass attend to in it. */
#ifndef ORTHRUS_KV_CACHE_H
#define ORTHRUS_KV_CACHE_H

#include <stdint.h>

#include "simd.h"

/* keys, values [sequence, kv head, slot, head_dim]; slots are dense, the strides of the other two are in scalars. */
typedef struct {
    scalar_t *keys, *values;
    int64_t kv_heads, head_dim, sequence_stride, head_stride;
} KVCache;

/* Consecutive rows of one sequence that attend alike. Besides the first kv_lens[row] keys of the sequence, each row attends
 * to the slots from `own_start` to `own_stop`: the keys of its own draft block, none for AR rows. */
typedef struct {
    int64_t first_row, rows, sequence, own_start, own_stop;
} Segment;

typedef struct {
    const Segment *segments;
    int64_t num_segments;
    const int64_t *kv_lens;
} AttentionMetadata;

#endif
