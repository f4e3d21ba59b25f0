"""Trees of drafts under a constraint, which decides which tokens may follow a path, and may depend on all of it.

`runner.draft_tree` chooses all other trees in one call. Here a tree is grown node by node, as the constraint is asked
about every path.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count

import torch
from torch import Tensor

from orthrus.decoding.constraints import Grammar, restrict
from orthrus.runner.draft_tree import BlockRows

Tree = tuple[list[int], list[int], list[float]]
"""Tokens, parents and confidence of the nodes, in order of falling path probability: see `Draft`."""
Options = Sequence[tuple[int, float]]
"""The candidates after a path: tokens with their probabilities, which fall."""


def constrained_tree(
    rows: BlockRows, scores_RV: Tensor, temperatures_R: Sequence[float], nodes: int | None, grammar: Grammar
) -> Tree:
    """The likeliest tree of `nodes` nodes (None: a chain) of tokens that a constraint allows after their paths. Nothing
    follows the end of an answer."""

    def options(path: list[int]) -> Options:
        row = len(path)
        if row >= len(scores_RV) or not grammar.goes_on(path):
            return ()
        scores_1V = scores_RV[row : row + 1].to(torch.float32, copy=True)
        restrict(scores_1V[0], grammar.mask())
        found = rows.after(path, scores_1V, temperatures_R[row])
        pairs = [*zip(found.tokens, found.confidence, strict=True)]
        return pairs[:1] if nodes is None else pairs

    return grow(options, nodes or len(scores_RV))


def grow(options: Callable[[list[int]], Options], nodes: int) -> Tree:
    """The tree of the `nodes` likeliest paths. `options` gives the candidates after a path."""
    tokens: list[int] = []
    parents: list[int] = []
    confidence: list[float] = []
    frontier: list[tuple[float, int, int, int, Options, list[int]]] = []
    order = count()

    def consider(reached: float, parent: int, rank: int, after: Options, path: list[int]) -> None:
        if rank < len(after):
            heappush(frontier, (-reached * after[rank][1], next(order), parent, rank, after, path))

    consider(1.0, -1, 0, options([]), [])
    while frontier and len(tokens) < nodes:
        negative, _, parent, rank, after, path = heappop(frontier)
        token, sure = after[rank]
        tokens.append(token)
        parents.append(parent)
        confidence.append(sure)
        consider(-negative / sure, parent, rank + 1, after, path)
        if len(tokens) < nodes:
            longer = [*path, token]
            consider(-negative, len(tokens) - 1, 0, options(longer), longer)
    return tokens, parents, confidence
