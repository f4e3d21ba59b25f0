/* The sizes of the structs that callers pass, for a check of their mirrors in structs.py. */
#ifndef ORTHRUS_STRUCT_SIZES_H
#define ORTHRUS_STRUCT_SIZES_H

#include <stdint.h>
#include <string.h>

#include "block_softmax.h"
#include "draft_tree.h"
#include "embedding.h"
#include "forward_structs.h"
#include "kv_cache.h"
#include "linear_weights.h"
#include "pack_groups.h"
#include "quantize.h"
#include "rope.h"

/* The size of a struct by its name; 0 for an unknown name. */
int64_t struct_size(const char *name) {
    const struct {
        const char *name;
        int64_t size;
    } sizes[] = {
        {"HeadNorms", sizeof(HeadNorms)},
        {"AttentionWeights", sizeof(AttentionWeights)},
        {"LayerWeights", sizeof(LayerWeights)},
        {"ModelWeights", sizeof(ModelWeights)},
        {"ViewRows", sizeof(ViewRows)},
        {"ForwardBatch", sizeof(ForwardBatch)},
        {"LinearWeights", sizeof(LinearWeights)},
        {"WeightPart", sizeof(WeightPart)},
        {"QuantizedRows", sizeof(QuantizedRows)},
        {"StoredGroups", sizeof(StoredGroups)},
        {"KVCache", sizeof(KVCache)},
        {"Segment", sizeof(Segment)},
        {"AttentionMetadata", sizeof(AttentionMetadata)},
        {"RopeParams", sizeof(RopeParams)},
        {"RopeShape", sizeof(RopeShape)},
        {"BlockScores", sizeof(BlockScores)},
        {"EmbeddingTable", sizeof(EmbeddingTable)},
        {"DraftHead", sizeof(DraftHead)},
        {"DraftContext", sizeof(DraftContext)},
        {"DraftBlock", sizeof(DraftBlock)},
        {"DraftNodes", sizeof(DraftNodes)},
        {"NoiseStream", sizeof(NoiseStream)},
        {"LoudTokens", sizeof(LoudTokens)},
        {"RowNoise", sizeof(RowNoise)},
    };
    for (unsigned long i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!strcmp(name, sizes[i].name)) return sizes[i].size;
    return 0;
}

#endif
