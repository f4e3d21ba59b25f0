"""How the rows of a pass are laid out: which tokens, where their keys go, what they attend to. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orthrus.backends.interface import AttentionChoice
from orthrus.batch import Segment, ViewName, ViewRows


class Root(NamedTuple):
    """Row 0 of a draft block: the token, and its position, which is also how many keys the block attends to before its
    own."""

    token: int
    position: int


@dataclass(frozen=True)
class BatchLayout:
    """Lays rows out for one attention kernel. multiple: of rows that the linear maps want."""

    attention: AttentionChoice
    multiple: int

    def ar_rows(self, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> ViewRows:
        """Causal rows after each cached length.

        Kernels that take a mask get a rectangle as high as the longest sequence, in descending order of position, which
        is what `causal_bias` needs: `query_rows` does that reversal, and nothing outside attention sees it.
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
        return self._finished("ar", rows, (len(tokens), height))

    def blocks(self, roots: Sequence[Sequence[Root]], first_slots: Sequence[int], width: int, mask: int) -> ViewRows:
        """Draft blocks of a root and width - 1 masks. Those of a sequence lie one after another from its first slot."""
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
        return self._finished("diffusion", rows, (len(roots), height))

    def _finished(self, view: ViewName, rows: _Rows, query_shape: tuple[int, int]) -> ViewRows:
        """With the padding that the linear maps want. Ragged attention needs no rectangle: its rows are one."""
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
    """The columns of a `ViewRows`, while it is filled."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.sequences: list[int] = []
        self.slots: list[int] = []
        self.query_rows: list[int] = []
        self.kv_lens: list[int] = []
        self.segments: list[Segment] = []
