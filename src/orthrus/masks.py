"""Attention masks as index predicates, and as additive biases for kernels that take one.

No tensor of size rows x context is stored. A causal bias is one vector per sequence: whether row r attends to key s
depends only on r + s, so every row reads the vector at its own offset. The rows of a draft block share one vector.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def attends(row: int, key: int, length: int, parents: Sequence[int], window: int | None = None) -> bool:
    """The rule of all causal masks: a row after `length` cached keys attends to the cache, itself, and its ancestors,
    in a layer with a sliding window only to those fewer than `window` positions before it.

    Row r follows row `parents[r]`; the first row follows none (-1). In a chain every row follows the one before it, so
    `kv_lens` and `kv_starts` state the whole rule; a tree needs `row_paths` too.
    """
    distance = 0
    while row >= 0 and row != key - length:
        row, distance = parents[row], distance + 1
    if row < 0:
        distance += length - 1 - key
    return (key < length or row >= 0) and (window is None or distance < window)


def first_keys(kv_lens: Sequence[int], view: str, window: int | None) -> list[int]:
    """`kv_starts`: the first key that each row attends to, given how many of the first keys it would without a window.

    An AR row attends to the `window` newest keys, its own included. A block attends to what its root, as an AR row,
    would attend to, its own rows in place of the root: all rows of a block share one range, whatever the window.
    """
    if window is None:
        return [0] * len(kv_lens)
    own = 0 if view == "ar" else 1
    return [max(0, kv_len + own - window) for kv_len in kv_lens]


def causal_bias(
    lengths: Sequence[int], rows: int, padded: int, span: int, like: Tensor, window: int | None = None
) -> Tensor:
    """Causal rows in *descending* order of position [B, 1, padded, span]: row r has position length + rows - 1 - r.

    Row r attends to key s where s <= length + rows - 1 - r, that is where r + s < length + rows, and in a window where
    also r + s >= length + rows - window. Rows from `rows` on are padding, whose results are never read. Dtype and
    device are those of `like`.
    """
    ends = [length + rows for length in lengths]
    storage = _visible(first_keys(ends, "ar", window), ends, span + padded, like)
    return storage.as_strided((len(lengths), 1, padded, span), (span + padded, 0, 1, 1))


def block_bias(
    kv_lens: Sequence[int],
    own: Sequence[tuple[int, int]],
    rows: int,
    span: int,
    like: Tensor,
    window: int | None = None,
) -> Tensor:
    """One block per sequence [B, 1, rows, span]: every row attends to the first `kv_lens[b]` keys, those in the window
    of its root (see `first_keys`), and to the slots from `own[b][0]` up to `own[b][1]`."""
    storage = _visible(first_keys(kv_lens, "diffusion", window), kv_lens, span, like)
    for vector, (start, stop) in zip(storage, own, strict=True):
        vector[start:stop] = 0
    return storage[:, None, None].expand(-1, 1, rows, -1)


def _visible(starts: Sequence[int], ends: Sequence[int], size: int, like: Tensor) -> Tensor:
    """Vectors [B, size]: 0 from place `starts[b]` up to `ends[b]`, -inf elsewhere."""
    vectors = like.new_full((len(ends), size), float("-inf"))
    for vector, start, end in zip(vectors, starts, ends, strict=True):
        vector[start:end] = 0
    return vectors
