"""Trees of AR rows: which rows lie on the path to each row. Integers only.

`parents` has one number per row of a sequence: the row that it follows, or -1 for a row that follows the newest cached
position. Parents come before their children. A chain, in which every row follows the one before it, is no tree here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orthrus.cache import BlockTable

Parents = Sequence[int]


@dataclass(frozen=True)
class Tree:
    """The rows of one sequence as a tree.

    depths [R]: how many rows each row follows. paths: the rows on the way to each leaf, the leaf included, in order of
    depth. row_paths [R]: the first path on which each row lies, numbered from `first_path` on.
    """

    depths: list[int]
    paths: list[list[int]]
    row_paths: list[int]

    @property
    def height(self) -> int:
        """Rows on the longest path."""
        return max(self.depths) + 1


def tree_of(parents: Parents, first_path: int = 0) -> Tree | None:
    """The tree of these rows; None for a chain. `first_path` is the number of its first path in the pass."""
    if all(parent == row - 1 for row, parent in enumerate(parents)):
        return None
    depths: list[int] = []
    for row, parent in enumerate(parents):
        assert -1 <= parent < row, "parents come before their children"
        depths.append(0 if parent < 0 else depths[parent] + 1)
    paths = [_path(parents, leaf) for leaf in sorted(set(range(len(parents))) - set(parents))]
    row_paths = [0] * len(parents)
    for number, path in reversed([*enumerate(paths, first_path)]):
        for row in path:
            row_paths[row] = number
    return Tree(depths, paths, row_paths)


def trees_of(parents: Sequence[Parents | None] | None, sequences: int) -> list[Tree | None]:
    """The tree of every sequence of a pass, None for chains. Their paths are numbered through."""
    trees: list[Tree | None] = []
    paths = 0
    for own in parents or [None] * sequences:
        tree = None if own is None else tree_of(own, paths)
        paths += len(tree.paths) if tree else 0
        trees.append(tree)
    return trees


def path_tables(trees: Sequence[Tree | None], tables: Sequence[BlockTable]) -> list[list[int]]:
    """The paths of all trees as `ForwardBatch.path_tables` holds them. Row r has the place `length` + r."""
    if not any(trees):
        return []
    lengths = [table.length for table in tables]
    longest = max((tree.height for tree in trees if tree), default=0)
    return [
        [length, *(length + row for row in path), *range(length + len(path), length + longest)]
        for tree, length in zip(trees, lengths, strict=True)
        if tree
        for path in tree.paths
    ]


def _path(parents: Parents, row: int) -> list[int]:
    """The rows from the cache to `row`, which comes last."""
    path = []
    while row >= 0:
        path.append(row)
        row = parents[row]
    return path[::-1]
