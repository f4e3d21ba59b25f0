"""The layout of the rows of a pass: their tokens, cache slots and attention metadata. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orthrus.backends.interface import AttentionChoice
from orthrus.batch import Segment, ViewName, ViewRows
from orthrus.cache import BlockTable
from orthrus.config import PAGE


class Root(NamedTuple):
    """Row 0 of a draft block: the token, its position, and the place in its sequence of the block's first key.

    The position is also the number of cached keys that the block attends to.
    """

    token: int
    position: int
    start: int


@dataclass(frozen=True)
class BatchLayout:
    """Lays rows out for one attention kernel. multiple: the linear maps need a multiple of this many rows."""

    attention: AttentionChoice
    multiple: int

    def ar_rows(self, tokens: Sequence[Sequence[int]], tables: Sequence[BlockTable]) -> ViewRows:
        """Causal rows after each cached length. The tables hold pages for them.

        Kernels that take a mask get a rectangle of queries as high as the longest sequence. It has descending
        positions, as `causal_bias` needs; `query_rows` does that reversal, which nothing outside attention sees.
        """
        longest = max(len(own) for own in tokens)
        height = self.attention.padded(longest)
        rows = _Rows()
        for sequence, (own, table) in enumerate(zip(tokens, tables, strict=True)):
            length = table.length
            last = sequence * height + longest - 1
            rows.segments.append(Segment(len(rows.tokens), len(own), sequence, 0, 0))
            rows.query_rows += range(last, last - len(own), -1)
            rows.positions += range(length, length + len(own))
            rows.slots += table.slots(length, length + len(own))
            rows.kv_lens += range(length + 1, length + 1 + len(own))
            rows.tokens += own
        return self._build("ar", rows, (len(tokens), height))

    def blocks(self, roots: Sequence[Sequence[Root]], width: int, tables: Sequence[BlockTable], mask: int) -> ViewRows:
        """Draft blocks of a root and width - 1 masks."""
        height, masks = max(len(own) for own in roots) * width, [mask] * (width - 1)
        rows = _Rows()
        for sequence, (own, table) in enumerate(zip(roots, tables, strict=True)):
            rows.query_rows += range(sequence * height, sequence * height + len(own) * width)
            for root in own:
                stop = root.start + width
                rows.slots += table.slots(root.start, stop)
                rows.segments.append(Segment(len(rows.tokens), width, sequence, root.start, stop))
                rows.kv_lens += [root.position] * width
                rows.positions += range(root.position, root.position + width)
                rows.tokens += [root.token, *masks]
        return self._build("diffusion", rows, (len(roots), height))

    def _build(self, view: ViewName, rows: _Rows, query_shape: tuple[int, int]) -> ViewRows:
        """Add the padding of the linear maps. For ragged attention the rows are their own rectangle of queries."""
        count = len(rows.tokens)
        query_rows = rows.query_rows
        if self.attention.ragged:
            query_rows, query_shape = list(range(count)), (1, count)
        tokens = rows.tokens + [0] * (-count % self.multiple)
        return ViewRows(
            view,
            tokens,
            rows.positions,
            rows.slots,
            query_rows,
            query_shape,
            rows.segments,
            rows.kv_lens,
        )


def block_starts(start: int, count: int, width: int) -> list[int]:
    """Places in a sequence for the keys of `count` blocks, from `start` on, so that each block lies in one page."""
    starts = []
    for _ in range(count):
        if start % PAGE + width > PAGE:
            start = -(-start // PAGE) * PAGE
        starts.append(start)
        start += width
    return starts


def workspace_rows(blocks: int, width: int) -> int:
    """The most positions that `blocks` blocks take, wherever they start."""
    start = PAGE - width + 1
    return block_starts(start, blocks, width)[-1] + width - start if blocks else 0


def chunks(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """A prompt in chunks of `size` tokens, the last one shorter."""
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


class _Rows:
    """The columns of a `ViewRows` while it is built."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.query_rows: list[int] = []
        self.kv_lens: list[int] = []
        self.segments: list[Segment] = []
