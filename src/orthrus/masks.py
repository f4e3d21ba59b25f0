"""Which keys a row sees, as index predicates turned into additive biases.

Nothing of the size rows x context is ever stored. One vector per sequence holds a causal bias, since whether row r sees
key s depends on r + s alone, and every row reads it from an offset of its own. The blocks that share a pass with causal
rows read the same vector from other offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def sees(row: int, key: int, length: int, parents: Sequence[int]) -> bool:
    """The one rule of all causal masks: a row of a pass after `length` cached keys sees the cache, itself, and the rows
    it descends from; row r follows row `parents[r]`, the first follows none (-1).

    Drafts are a chain today, in which every row follows the one before it, so that a number for each row says it all
    (`Sight`, and the vectors below). A tree of drafts is other parents; what a kernel is told then follows from this.
    """
    while row >= 0 and row != key - length:
        row = parents[row]
    return key < length or row >= 0


@dataclass(frozen=True)
class Bias:
    """An additive bias [B, 1, R, span], and the places of its storage to be opened while it is in use."""

    view: Tensor
    storage: Tensor
    opened: Tensor | None = None

    def open(self) -> Tensor:
        """Let the rows see what only they may see."""
        if self.opened is not None:
            self.storage.index_fill_(0, self.opened, 0.0)
        return self.view

    def close(self) -> None:
        """Hide it again."""
        if self.opened is not None:
            self.storage.index_fill_(0, self.opened, float("-inf"))


def causal_bias(lengths: list[int], rows: int, padded: int, span: int, like: Tensor) -> Bias:
    """Causal rows in *descending* order, [B, 1, padded, span]: row r stands at length + rows - 1 - r.

    Row r sees key s where s <= length + rows - 1 - r, that is where r + s < length + rows. Rows from `rows` on are
    padding, whose results nobody reads. Dtype and device are `like`'s.
    """
    storage = _first_visible([length + rows for length in lengths], span + padded, like)
    view = storage.as_strided((len(lengths), 1, padded, span), (span + padded, 0, 1, 1))
    return Bias(view, storage.view(-1))


def block_bias(lengths: list[int], rows: int, span: int, like: Tensor) -> Bias:
    """A block right behind each cache, [B, 1, rows, span]: every row sees the cache and the whole block."""
    storage = _first_visible([length + rows for length in lengths], span, like)
    return Bias(storage[:, None, None].expand(-1, 1, rows, -1), storage.view(-1))


def beside_bias(causal: Bias, rows: int, candidate: int, slots: list[int], width: int) -> Bias:
    """A block that shares a pass with `rows` causal rows and is rooted in row `candidate` of them, [B, 1, width, span].

    It sees what stands before its root, s < length + candidate: the causal vector read from rows - candidate on. Its
    own keys, `width` of them from each slot on, are opened for its turn alone.
    """
    B, _, _, span = causal.view.shape
    size, shift = causal.view.stride(0), rows - candidate
    view = causal.storage.as_strided((B, 1, width, span), (size, 0, 0, 1), shift)
    own = [b * size + shift + slot + n for b, slot in enumerate(slots) for n in range(width)]
    return Bias(view, causal.storage, torch.tensor(own, device=causal.storage.device))


def _first_visible(counts: list[int], size: int, like: Tensor) -> Tensor:
    """Vectors [B, size], 0 for the first `counts` places and -inf after them."""
    vectors = like.new_full((len(counts), size), float("-inf"))
    for vector, count in zip(vectors, counts, strict=True):
        vector[:count] = 0
    return vectors
