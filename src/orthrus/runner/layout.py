"""The layout of the rows of a pass: their tokens, cache slots and attention metadata. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orthrus.backends.interface import AttentionChoice
from orthrus.batch import ForwardBatch, Segment, ViewName, ViewRows
from orthrus.cache import BlockTable, pages_for
from orthrus.config import PAGE
from orthrus.runner.trees import Tree


class Root(NamedTuple):
    """Row 0 of a draft block: the token, its position, and the place in its sequence of the block's first key.

    The position is also the number of keys before it that the block attends to. path: where they are (see `row_paths`).
    """

    token: int
    position: int
    start: int
    path: int = -1


@dataclass(frozen=True)
class BatchLayout:
    """Lays rows out for one attention kernel. multiple: the linear maps need a multiple of this many rows."""

    attention: AttentionChoice
    multiple: int

    def ar_rows(
        self, tokens: Sequence[Sequence[int]], tables: Sequence[BlockTable], trees: Sequence[Tree | None] = ()
    ) -> ViewRows:
        """Causal rows after each cached length. The tables hold pages for them.

        Kernels that take a mask get a rectangle of queries as high as the longest chain or path, for each path of a
        tree. It has descending positions, as `causal_bias` needs; `query_rows` does that reversal, which nothing
        outside attention sees.
        """
        trees = trees or [None] * len(tokens)
        longest = max(tree.height if tree else len(own) for own, tree in zip(tokens, trees, strict=True))
        paths = max(len(tree.paths) if tree else 1 for tree in trees)
        height = self.attention.padded(longest)
        rows = _Rows()
        for sequence, (own, table, tree) in enumerate(zip(tokens, tables, trees, strict=True)):
            length = table.length
            last = sequence * paths * height + longest - 1
            rows.segments.append(Segment(len(rows.tokens), len(own), sequence, 0, 0))
            rows.slots += table.slots(length, length + len(own))
            rows.tokens += own
            if tree is None:
                rows.query_rows += range(last, last - len(own), -1)
                rows.positions += range(length, length + len(own))
                rows.kv_lens += range(length + 1, length + 1 + len(own))
                rows.paths += [-1] * len(own)
                continue
            first = min(tree.row_paths)
            placed = zip(tree.row_paths, tree.depths, strict=True)
            rows.query_rows += [last + (path - first) * height - depth for path, depth in placed]
            rows.positions += [length + depth for depth in tree.depths]
            rows.kv_lens += [length + depth + 1 for depth in tree.depths]
            rows.paths += tree.row_paths
        return self._build("ar", rows, (len(tokens), paths * height))

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
                rows.paths += [root.path] * width
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
            rows.paths if any(path >= 0 for path in rows.paths) else [],
        )


def forward_batch(
    views: Sequence[ViewRows],
    tables: Sequence[BlockTable],
    span: int,
    logit_rows: list[int],
    num_logits: int,
    paths: Sequence[list[int]] = (),
) -> ForwardBatch:
    """The pass over these rows. paths: its `path_tables`; see `ForwardBatch` for the others."""
    columns = pages_for(span)
    pages = [table.pages[:columns] for table in tables]
    padded = [own + [0] * (columns - len(own)) for own in pages]
    return ForwardBatch(views, tables[0].cache, padded, span, logit_rows, num_logits, list(paths))


def place_blocks(
    rows: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[int]],
    width: int,
    tables: Sequence[BlockTable],
    trees: Sequence[Tree | None],
) -> list[list[Root]]:
    """The roots of the blocks in the `chosen` rows of each sequence. Blocks write their keys after all AR rows."""
    roots: list[list[Root]] = []
    for own, selected, table, tree in zip(rows, chosen, tables, trees, strict=True):
        starts = block_starts(table.length + len(own), len(selected), width)
        placed = zip(selected, starts, strict=True)
        if tree is None:
            roots.append([Root(own[row], table.length + row, start) for row, start in placed])
        else:
            paths, depths = tree.row_paths, tree.depths
            roots.append([Root(own[row], table.length + depths[row], start, paths[row]) for row, start in placed])
    return roots


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
        self.paths: list[int] = []
        self.segments: list[Segment] = []
