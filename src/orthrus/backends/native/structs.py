"""The structs of `c/*.h`, mirrored field by field. Pointers are addresses of tensors, 0 or None where there is none."""

from __future__ import annotations

import ctypes

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
VIEWS = ("ar", "diffusion")
"""The views, as `c/forward_structs.h` numbers them."""


class LinearWeights(ctypes.Structure):
    """See `c/linear_weights.h`. format: see `linears`."""

    _fields_ = (
        ("weight", _POINTER),
        ("bias", _POINTER),
        ("scales", _POINTER),
        ("shifts", _POINTER),
        ("parts", _POINTER),
        ("inputs", _INTEGER),
        ("outputs", _INTEGER),
        ("format", _INTEGER),
    )


class WeightPart(ctypes.Structure):
    """A range of outputs in a format of its own; see `c/linear_weights.h`."""

    _fields_ = (("outputs", _INTEGER), ("format", _INTEGER))


class QuantizedRows(ctypes.Structure):
    """See `c/quantize.h`."""

    _fields_ = (("codes", _POINTER), ("scales", _POINTER), ("groups", _POINTER))


class StoredGroups(ctypes.Structure):
    """See `c/pack_groups.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("codes", "scales", "mins")),
        *((name, _INTEGER) for name in ("outputs", "groups", "stride", "bits", "layout")),
    )


class KVCache(ctypes.Structure):
    """See `c/kv_cache.h`, as for the next two."""

    _fields_ = (
        ("keys", _POINTER),
        ("values", _POINTER),
        ("kv_heads", _INTEGER),
        ("head_dim", _INTEGER),
        ("head_stride", _INTEGER),
    )


class Segment(ctypes.Structure):
    """A row of `AttentionMetadata.segments`."""

    _fields_ = tuple((name, _INTEGER) for name in ("first_row", "rows", "sequence", "own_start", "own_stop"))


class AttentionMetadata(ctypes.Structure):
    """Segments, the number of keys that each row attends to, the pages of each sequence, and the paths of trees."""

    _fields_ = (
        ("segments", _POINTER),
        ("num_segments", _INTEGER),
        ("kv_lens", _POINTER),
        ("block_tables", _POINTER),
        ("table_columns", _INTEGER),
        ("kv_starts", _POINTER),
        ("scale", _FLOAT),
        ("soft_cap", _FLOAT),
        ("row_paths", _POINTER),
        ("path_tables", _POINTER),
        ("path_columns", _INTEGER),
    )


class RopeParams(ctypes.Structure):
    """See `c/rope.h`, as for the next."""

    _fields_ = (
        ("q_norm", _POINTER),
        ("k_norm", _POINTER),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("positions", _POINTER),
        ("eps", _FLOAT),
        ("norm_offset", _FLOAT),
    )


class RopeShape(ctypes.Structure):
    """Rows, heads, size of a head, and stride of the rows."""

    _fields_ = tuple((name, _INTEGER) for name in ("rows", "heads", "size", "stride"))


class BlockScores(ctypes.Structure):
    """See `c/block_softmax.h`."""

    _fields_ = tuple((name, _INTEGER) for name in ("groups", "blocks", "rows", "text", "block"))


class HeadNorms(ctypes.Structure):
    """See `c/forward_structs.h`, as for all below."""

    _fields_ = (("q_norm", _POINTER), ("k_norm", _POINTER))


class AttentionWeights(ctypes.Structure):
    """The linear maps of attention in one view."""

    _fields_ = (("qkv", LinearWeights), ("o", LinearWeights))


class LayerWeights(ctypes.Structure):
    """Norms and linear maps of one layer; what views have of their own is in the order of `VIEWS`."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("post_attention_norm", _POINTER),
        ("post_mlp_norm", _POINTER),
        ("window", _INTEGER),
        ("rope", _INTEGER),
        ("head_norms", HeadNorms * len(VIEWS)),
        ("attention", AttentionWeights * len(VIEWS)),
        ("gate_up", LinearWeights),
        ("down", LinearWeights),
    )


class EmbeddingTable(ctypes.Structure):
    """See `c/embedding.h`. type: 0 for scalars, else the place in `quantization.TYPES` plus one."""

    _fields_ = (("rows", _POINTER), ("hidden", _INTEGER), ("row_bytes", _INTEGER), ("type", _INTEGER))


class ModelWeights(ctypes.Structure):
    """A model: embedding, layers, final norm, head, and their sizes."""

    _fields_ = (
        ("embedding", EmbeddingTable),
        ("final_norm", _POINTER),
        ("layers", _POINTER),
        ("head", LinearWeights),
        ("num_layers", _INTEGER),
        ("hidden", _INTEGER),
        ("intermediate", _INTEGER),
        ("heads", _INTEGER),
        ("kv_heads", _INTEGER),
        ("head_dim", _INTEGER),
        ("activation", _INTEGER),
        ("norm_eps", _FLOAT),
        ("norm_offset", _FLOAT),
        ("embedding_scale", _FLOAT),
        ("residual_scale", _FLOAT),
    )


class ViewRows(ctypes.Structure):
    """The rows of one view; `view` is its place in `VIEWS`."""

    _fields_ = (
        ("view", _INTEGER),
        ("padded_rows", _INTEGER),
        ("rows", _INTEGER),
        ("tokens", _POINTER),
        ("slot_mapping", _POINTER),
        ("positions", _POINTER),
        ("attention", AttentionMetadata),
        ("kv_starts", _POINTER),
    )


class ForwardBatch(ctypes.Structure):
    """The rows of all views, the rows that need logits, and the cache."""

    _fields_ = (
        ("views", _POINTER),
        ("logit_rows", _POINTER),
        ("num_views", _INTEGER),
        ("rows", _INTEGER),
        ("num_logit_rows", _INTEGER),
        ("num_logits", _INTEGER),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("cache", KVCache),
        ("layer_stride", _INTEGER),
    )


class DraftHead(ctypes.Structure):
    """See `c/draft_head.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("bias", "row", "before", "token", "output")),
        ("embedding", EmbeddingTable),
        ("hidden", _INTEGER),
        ("units", _INTEGER),
    )


class DraftContext(ctypes.Structure):
    """See `c/ngrams.h`."""

    _fields_ = (
        ("text", _POINTER),
        ("length", _INTEGER),
        ("evidence", _POINTER),
        ("first", _INTEGER),
        *((name, ctypes.c_float) for name in ("slope", "shift", "new_slope", "no_row", "least", "most", "least_rest")),
    )


class DraftBlock(ctypes.Structure):
    """See `c/draft_tree.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("logits", "hidden_states", "temperatures")),
        *((name, _INTEGER) for name in ("rows", "vocabulary", "fp32", "first_token", "nodes", "chain")),
        ("context", _POINTER),
    )


class DraftNodes(ctypes.Structure):
    """See `c/draft_tree.h`."""

    _fields_ = (("tokens", _POINTER), ("parents", _POINTER), ("confidence", _POINTER), ("looked_up", _POINTER))


class NoiseStream(ctypes.Structure):
    """See `c/gumbel.h`."""

    _fields_ = (("state", ctypes.c_uint64 * 2), ("increment", ctypes.c_uint64 * 2))


class LoudTokens(ctypes.Structure):
    """See `c/sampled_row.h`."""

    _fields_ = (("tokens", _POINTER), ("noise", _POINTER), ("states", _POINTER), ("count", _INTEGER))


class RowNoise(ctypes.Structure):
    """See `c/sampled_row.h`."""

    _fields_ = (
        ("stream", NoiseStream),
        ("position", _INTEGER),
        ("temperature", ctypes.c_float),
        ("near", ctypes.c_float),
        ("loud", _POINTER),
    )


MIRRORED: tuple[type[ctypes.Structure], ...] = (
    LinearWeights,
    WeightPart,
    EmbeddingTable,
    QuantizedRows,
    StoredGroups,
    KVCache,
    Segment,
    AttentionMetadata,
    RopeParams,
    RopeShape,
    BlockScores,
    HeadNorms,
    AttentionWeights,
    LayerWeights,
    ModelWeights,
    ViewRows,
    ForwardBatch,
    DraftHead,
    DraftContext,
    DraftBlock,
    DraftNodes,
    NoiseStream,
    LoudTokens,
    RowNoise,
)


def mismatch(library: ctypes.CDLL) -> str | None:
    """What is wrong with the first struct whose size in the library is not that of its mirror; None where all agree."""
    size_of = library.struct_size
    size_of.argtypes, size_of.restype = (ctypes.c_char_p,), _INTEGER
    for mirror in MIRRORED:
        size = size_of(mirror.__name__.encode())
        if size != ctypes.sizeof(mirror):
            return f"{mirror.__name__} has {size} bytes in C and {ctypes.sizeof(mirror)} in its ctypes mirror"
    return None
