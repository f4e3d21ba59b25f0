"""Attention masks as index predicates, and as additive biases for kernels that take one.

No tensor of size rows x context is stored. A causal bias is one vector per sequence: whether row r attends to key s
depends only on r + s, so every row reads the vector at its own offset. The rows of a draft block share one vector.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def attends(row: int, key: int, length: int, parents: Sequence[int]) -> bool:
    """The rule of all causal masks: a row after `length` cached keys attends to the cache, itself, and its ancestors.

    Row r follows row `parents[r]`; the first row follows none (-1). Drafts are a chain today, in which every row
    follows the one before it, so `kv_lens` states the whole rule.
    """
    while row >= 0 and row != key - length:
        row = parents[row]
    return key < length or row >= 0


def causal_bias(lengths: Sequence[int], rows: int, padded: int, span: int, like: Tensor) -> Tensor:
    """Causal rows in *descending* order of position [B, 1, padded, span]: row r has position length + rows - 1 - r.

    Row r attends to key s where s <= length + rows - 1 - r, that is where r + s < length + rows. Rows from `rows` on
    are padding, whose results are never read. Dtype and device are those of `like`.
    """
    storage = _visible([length + rows for length in lengths], span + padded, like)
    return storage.as_strided((len(lengths), 1, padded, span), (span + padded, 0, 1, 1))


def block_bias(kv_lens: Sequence[int], own: Sequence[tuple[int, int]], rows: int, span: int, like: Tensor) -> Tensor:
    """One block per sequence [B, 1, rows, span]: every row attends to the first `kv_lens[b]` keys and to the slots from
    `own[b][0]` up to `own[b][1]`."""
    storage = _visible(kv_lens, span, like)
    for vector, (start, stop) in zip(storage, own, strict=True):
        vector[start:stop] = 0
    return storage[:, None, None].expand(-1, 1, rows, -1)


def _visible(counts: Sequence[int], size: int, like: Tensor) -> Tensor:
    """Vectors [B, size]: 0 in the first `counts[b]` places, -inf after them."""
    vectors = like.new_full((len(counts), size), float("-inf"))
    for vector, count in zip(vectors, counts, strict=True):
        vector[:count] = 0
    return vectors
