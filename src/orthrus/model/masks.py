"""Which keys a row sees, as index predicates turned into additive biases.

Nothing of the size rows x context is ever stored: a causal bias is one vector per sequence that every row reads from
its own offset, the bias of a block one vector per sequence that all its rows share.
"""

from __future__ import annotations

from torch import Tensor


def causal_bias(lengths: list[int], rows: int, padded: int, span: int, like: Tensor) -> Tensor:
    """Bias [B, 1, padded, span] of causal rows in *descending* order: row r stands at length + rows - 1 - r.

    Row r sees key s where s <= length + rows - 1 - r, that is where r + s < length + rows: a function of r + s alone,
    so a vector of padded + span values, read with stride 1 along both axes, holds it all. Rows from `rows` on are
    padding, whose results nobody reads. Dtype and device are `like`'s.
    """
    vectors = _first_visible([length + rows for length in lengths], span + padded, like)
    return vectors.as_strided((len(lengths), 1, padded, span), (span + padded, 0, 1, 1))


def block_bias(visible: list[int], own: list[int], rows: int, span: int, like: Tensor) -> Tensor:
    """Bias [B, 1, rows, span] of blocks: every row sees the first `visible` keys, and `rows` keys from `own` on."""
    vectors = _first_visible(visible, span, like)
    for vector, start in zip(vectors, own, strict=True):
        vector[start : start + rows] = 0
    return vectors[:, None, None].expand(-1, 1, rows, -1)


def _first_visible(counts: list[int], size: int, like: Tensor) -> Tensor:
    """Vectors [B, size], 0 for the first `counts` places and -inf after them."""
    vectors = like.new_full((len(counts), size), float("-inf"))
    for vector, count in zip(vectors, counts, strict=True):
        vector[:count] = 0
    return vectors
