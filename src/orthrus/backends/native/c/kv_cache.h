/* The key/value cache of one layer, and what the rows of a pass attend to in it. */
#ifndef ORTHRUS_KV_CACHE_H
#define ORTHRUS_KV_CACHE_H

#include <stdint.h>

#include "simd.h"

/* Positions per page. */
enum { PAGE = 256 };

/* keys, values [kv head, slot, head_dim], dense; `head_stride` is in scalars. */
typedef struct {
    scalar_t *keys, *values;
    int64_t kv_heads, head_dim, head_stride;
} KVCache;

/* Consecutive rows of one sequence that attend alike. Besides the first kv_lens[row] keys on its path, each row attends to
 * those from `own_start` to `own_stop`: the keys of its own draft block, which lie in one page; none for AR rows. */
typedef struct {
    int64_t first_row, rows, sequence, own_start, own_stop;
} Segment;

/* block_tables [sequences][table_columns]: the pages of each sequence. kv_starts [rows]: where the keys of a row begin in a
 * sliding window; null where they begin at 0. row_paths [rows]: the path of each row of a tree in path_tables
 * [paths][path_columns], which holds the position where the path begins, and the places in the sequence of its keys from
 * there on; -1, for all rows of a segment, or null where the place of every key is its position. Scores are multiplied by
 * `scale` (0: 1 / sqrt(head_dim)); a `soft_cap` c (0: none) then maps them to c tanh(score / c). */
typedef struct {
    const Segment *segments;
    int64_t num_segments;
    const int64_t *kv_lens, *block_tables;
    int64_t table_columns;
    const int64_t *kv_starts;
    float scale, soft_cap;
    const int64_t *row_paths, *path_tables;
    int64_t path_columns;
} AttentionMetadata;

/* The slot of a position, given the pages of its sequence. */
static inline int64_t slot_of(const int64_t *pages, int64_t position) {
    return pages[position / PAGE] * PAGE + position % PAGE;
}

#endif
