"""The layout of the rows of a pass: their tokens, cache slots and attention metadata. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orthrus.backends.interface import AttentionChoice
from orthrus.batch import Segment, ViewName, ViewRows


class Root(NamedTuple):
    """Row 0 of a draft block: the token and its position. The position is also the number of cached keys that the block
    attends to."""

    token: int
    position: int


@dataclass(frozen=True)
class BatchLayout:
    """Lays rows out for one attention kernel. multiple: the linear maps need a multiple of this many rows."""

    attention: AttentionChoice
    multiple: int

    def ar_rows(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> ViewRows:
        """Causal rows after each cached length.

        Kernels that take a mask get a rectangle of queries as high as the longest sequence. It has descending
        positions, as `causal_bias` needs; `query_rows` does that reversal, which nothing outside attention sees.
        """
        longest = max(len(own) for own in tokens)
        height = self.attention.padded(longest)
        rows = _Rows()
        for sequence, (own, length) in enumerate(zip(tokens, lengths, strict=True)):
            last = sequence * height + longest - 1
            rows.segments.append(Segment(len(rows.tokens), len(own), sequence, 0, 0))
            rows.query_rows += range(last, last - len(own), -1)
            rows.positions += range(length, length + len(own))
            rows.slots += range(length, length + len(own))
            rows.kv_lens += range(length + 1, length + 1 + len(own))
            rows.sequences += [sequence] * len(own)
            rows.tokens += own
        return self._build("ar", rows, (len(tokens), height))

    def blocks(self, roots: Sequence[Sequence[Root]], first_slots: Sequence[int], width: int, mask: int) -> ViewRows:
        """Draft blocks of a root and width - 1 masks, in consecutive slots from the first slot of each sequence."""
        height, masks = max(len(own) for own in roots) * width, [mask] * (width - 1)
        rows = _Rows()
        for sequence, (own, first_slot) in enumerate(zip(roots, first_slots, strict=True)):
            count = len(own) * width
            rows.query_rows += range(sequence * height, sequence * height + count)
            rows.slots += range(first_slot, first_slot + count)
            rows.sequences += [sequence] * count
            for block, root in enumerate(own):
                slot = first_slot + block * width
                rows.segments.append(Segment(len(rows.tokens), width, sequence, slot, slot + width))
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
            rows.sequences,
            rows.slots,
            query_rows,
            query_shape,
            rows.segments,
            rows.kv_lens,
        )


def chunks(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """A prompt in chunks of `size` tokens, the last one shorter."""
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


class _Rows:
    """The columns of a `ViewRows` while it is built."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.sequences: list[int] = []
        self.slots: list[int] = []
        self.query_rows: list[int] = []
        self.kv_lens: list[int] = []
        self.segments: list[Segment] = []
