"""The growth of a tree of drafts: its nodes are those whose paths have the largest probabilities."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orthrus.drafters.tree import DraftTree, Kind


class Option(NamedTuple):
    """A token that may follow a path, with its log probability. looked_up: it is there by a match alone."""

    token: int
    log_p: float
    looked_up: bool = False


def grow(options: Callable[[list[int]], Sequence[Option]], nodes: int) -> DraftTree:
    """The tree of the `nodes` likeliest paths, its nodes in order of falling path probability. `options` gives what may
    follow a path, likeliest first."""
    tokens: list[int] = []
    parents: list[int] = []
    confidence: list[float] = []
    kinds: list[Kind] = []
    left: list[tuple[float, int, int, int, Sequence[Option], list[int]]] = []
    order = itertools.count()

    def consider(reached: float, parent: int, rank: int, after: Sequence[Option], path: list[int]) -> None:
        if rank < len(after):
            heapq.heappush(left, (-reached - after[rank].log_p, next(order), parent, rank, after, path))

    consider(0.0, -1, 0, options([]), [])
    while left and len(tokens) < nodes:
        negative, _, parent, rank, after, path = heapq.heappop(left)
        token, log_p, looked_up = after[rank]
        tokens.append(token)
        parents.append(parent)
        confidence.append(math.exp(log_p))
        kinds.append("lookup" if looked_up else "agrees")
        consider(-negative - log_p, parent, rank + 1, after, path)
        if len(tokens) < nodes:
            longer = [*path, token]
            consider(-negative, len(tokens) - 1, 0, options(longer), longer)
    return DraftTree(tokens, parents, confidence, kinds, [None] * len(tokens))
