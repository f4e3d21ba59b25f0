"""How the rows of a draft block become a draft: a tree of the likeliest paths, or the chain of the likeliest tokens.

The expected number of accepted drafts is the sum of the path probabilities of all nodes, so the best tree of N nodes
is that of the N likeliest paths. `runner.draft_tree` chooses it. Where a constraint decides which tokens may follow a
path, the tree is grown here, node by node.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count

import torch
from torch import Tensor

from orthrus.decoding.constraints import Grammar, restrict

CANDIDATES = 8
"""The likeliest tokens after a path that may become nodes."""
Tree = tuple[list[int], list[int], list[float]]
"""Tokens, parents and confidence of the nodes, in order of falling path probability: see `Draft`."""
Options = Sequence[tuple[int, float]]
"""The candidates after a path: tokens with their probabilities, which fall."""
TreeOf = Callable[[Tensor, Sequence[float]], Tree]
"""A function from scores [R, V] of the rows of one block, and their temperatures, to a tree."""


def chain(scores_RV: Tensor, temperatures_R: Sequence[float]) -> Tree:
    """The chain of the likeliest token of each row, up to the first row whose scores are NaN."""
    options = [own[:1] for own in candidates(scores_RV, temperatures_R)]
    return grow(lambda path: options[len(path)] if len(path) < len(options) else (), len(options))


def constrained_tree(scores_RV: Tensor, temperatures_R: Sequence[float], nodes: int | None, grammar: Grammar) -> Tree:
    """The likeliest tree of `nodes` nodes (None: a chain) of tokens that a constraint allows after their paths. Nothing
    follows the end of an answer."""

    def options(path: list[int]) -> Options:
        row = len(path)
        if row >= len(scores_RV) or not grammar.goes_on(path):
            return ()
        scores_V = scores_RV[row].to(torch.float32, copy=True)
        restrict(scores_V, grammar.mask())
        (found,) = candidates(scores_V[None], temperatures_R[row : row + 1])
        return found[:1] if nodes is None else found

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


def candidates(scores_RV: Tensor, temperatures_R: Sequence[float]) -> list[Options]:
    """Per row, its likeliest tokens with their probabilities; the lower id first of equals. A row whose scores are NaN
    has none."""
    temperatures_R1 = torch.tensor(temperatures_R, device=scores_RV.device)[:, None]
    scaled_RV = scores_RV.float() / temperatures_R1
    top = scaled_RV.topk(min(CANDIDATES, scaled_RV.shape[1]), dim=-1)
    shares = (top.values - scaled_RV.logsumexp(dim=-1, keepdim=True)).exp()
    rows = zip(top.values.tolist(), top.indices.tolist(), shares.tolist(), strict=True)
    return [
        [(token, share) for _, token, share in sorted(zip([-v for v in values], tokens, own, strict=True)) if share > 0]
        for values, tokens, own in rows
    ]
