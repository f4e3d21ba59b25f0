"""The records of one forward pass: its rows, the cache slots of their keys, and their attention metadata.

A pass has rows of one or two views. Linear maps get all rows concatenated. Attention gets them either ragged (described
by `AttentionMetadata`) or, for kernels that take a mask, as a rectangle of queries (see `SlotMapping.query_shape`).
All of this is plain integers until an executor copies them to its device at once.

Shapes: N rows of a view without padding, S segments, B sequences of the batch, E head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from torch import Tensor

from orthrus.cache import KVCache

ViewName = Literal["ar", "diffusion"]


class Segment(NamedTuple):
    """Consecutive rows of one sequence: its AR rows, or the rows of one draft block.

    Besides the first `kv_lens` keys on its path, every row of the segment attends to the keys at the places `own_start`
    to `own_stop` of the sequence (a block's own keys; empty for AR rows). These lie in one page.
    """

    first_row: int
    rows: int
    sequence: int
    own_start: int
    own_stop: int


@dataclass(frozen=True)
class ViewRows:
    """The rows of one view, in ascending order of position within each segment.

    tokens: one per row, then padding up to the multiple that the linear maps need. Per row without padding: its
    position, the cache slot of its key, its row in the rectangle of queries, and `kv_lens`: how many of the first keys
    of its sequence it attends to. query_shape: sequences and rows of that rectangle.

    AR rows take the places after the cached positions, in order. In a chain the place of a row is its position, and so
    is that of every key that it attends to. In a tree, the keys from the cached length on are those of its ancestors:
    `row_paths` names the entry of `ForwardBatch.path_tables` that holds their places (-1: every key is at its
    position). It is empty if no row of the view needs one. Blocks that share a pass with AR rows write their keys after
    those rows.
    """

    view: ViewName
    tokens: list[int]
    positions: list[int]
    slots: list[int]
    query_rows: list[int]
    query_shape: tuple[int, int]
    segments: list[Segment]
    kv_lens: list[int]
    row_paths: list[int]

    @property
    def max_segment_rows(self) -> int:
        """Rows of the longest segment."""
        return max((segment.rows for segment in self.segments), default=0)

    @property
    def integers(self) -> list[list[int]]:
        """All values that differ between passes of one shape: tokens, slot mapping [2 N], positions, segments [5 S],
        kv_lens, row_paths."""
        mapping = [*self.query_rows, *self.slots]
        return [self.tokens, mapping, self.positions, [*chain(*self.segments)], self.kv_lens, self.row_paths]

    @property
    def shape(self) -> tuple[object, ...]:
        """The shape of these rows: everything that is not in `integers`."""
        sizes = len(self.tokens), len(self.positions), len(self.segments), len(self.row_paths)
        return self.view, *sizes, self.query_shape, self.max_segment_rows


@dataclass(frozen=True)
class ForwardBatch:
    """One forward pass over the sequences of a batch.

    block_tables: the pages of each sequence, padded with page 0 to one length. path_tables: one entry per path of a
    tree, all of one length; its first number is the cached length, at which the path begins, and the others are the
    places in the sequence of the keys at the positions from there on; behind the end of a path, the positions
    themselves. span: keys that attention reads per
    sequence, rounded to the multiple under which bits hold. logit_rows: rows whose final hidden states are returned,
    numbered over the rows of all views, padding included; logits are computed for the first `num_logits` of them.
    """

    views: Sequence[ViewRows]
    cache: KVCache
    block_tables: list[list[int]]
    span: int
    logit_rows: list[int]
    num_logits: int
    path_tables: list[list[int]]

    @property
    def draft_only(self) -> bool:
        """Whether the pass only drafts, so that low-precision weights may run it."""
        return all(rows.view == "diffusion" for rows in self.views)

    @property
    def integers(self) -> list[list[int]]:
        """All values that differ between passes of one shape: those of each view, `block_tables`, `path_tables`,
        `logit_rows`."""
        return [
            *chain.from_iterable(rows.integers for rows in self.views),
            [*chain(*self.block_tables)],
            [*chain(*self.path_tables)],
            self.logit_rows,
        ]


@dataclass(frozen=True)
class SlotMapping:
    """Where the rows of a view go, on the device.

    table_2N: the row of the rectangle of queries, and the cache slot of each row. The linear maps may have more rows
    than N: padding, which is written nowhere. Rows of the rectangle [B, A] that no row maps to are zero. cos and signed
    sin are [N, 1, E], fp32. The q and k norms multiply by their weight plus `norm_offset`, and stand
    before the rotation or after it (`norm_last`).
    """

    table_2N: Tensor
    cos: Tensor
    sin: Tensor
    query_shape: tuple[int, int]
    norm_eps: float
    norm_offset: float = 0.0
    norm_last: bool = False

    @property
    def full(self) -> bool:
        """Whether every row of the rectangle has a row mapped to it."""
        return self.table_2N.shape[1] == self.query_shape[0] * self.query_shape[1]


@dataclass(frozen=True)
class AttentionMetadata:
    """Ragged attention metadata of a view on the device: segments [S, 5] (see `Segment`), kv_lens [N], block_tables
    [B, pages], and the number of rows in the longest segment.

    kv_starts [N]: where the keys of a row begin, in a layer with a sliding window. It does not concern the own keys of
    a block. scale, soft_cap: see `DecoderConfig`. None stands for no window, 1 / sqrt(E) and no cap. row_paths [N],
    path_tables [P, 1 + places]: see `ViewRows` and `ForwardBatch`; None where no row is in a tree. The rows of one
    segment are all in a tree or none is.
    """

    segments: Tensor
    kv_lens: Tensor
    block_tables: Tensor
    max_segment_rows: int
    kv_starts: Tensor | None = None
    scale: float | None = None
    soft_cap: float | None = None
    row_paths: Tensor | None = None
    path_tables: Tensor | None = None
