"""Inspection of a packed text: which tokens are roots, targets, both or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from orthrus.training.blocks import Blocks

Role = Literal["other", "root", "target", "root and target"]


@dataclass(frozen=True)
class Word:
    """One token of a packed text; `begins` is true for the first token of a document."""

    text: str
    role: Role
    begins: bool


def words(blocks: Blocks, decode: Callable[[Sequence[int]], str]) -> Iterator[Word]:
    """All tokens of the text with their roles."""
    roots = set(blocks.roots_S.tolist())
    targets = set(blocks.targets_SM[blocks.trained_SM].tolist())
    for position, token in enumerate(blocks.tokens_T.tolist()):
        role: Role = "other"
        if position in roots:
            role = "root and target" if position in targets else "root"
        elif position in targets:
            role = "target"
        yield Word(decode([token]), role, position in blocks.starts)


def block_rows(blocks: Blocks, block: int, decode: Callable[[Sequence[int]], str]) -> list[tuple[str, str]]:
    """The rows of one block: the input token of each, and its training target, `-` for none."""
    tokens, root = blocks.tokens_T.tolist(), int(blocks.roots_S[block])
    rows = []
    for row in range(blocks.block_size):
        target = root + row + 1
        trained = row < blocks.trained_rows and target < int(blocks.ends_S[block])
        rows.append((decode([tokens[root]]) if row == 0 else "[mask]", decode([tokens[target]]) if trained else "-"))
    return rows
