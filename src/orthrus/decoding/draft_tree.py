"""Trees of drafts under a constraint, which decides which tokens may follow a path, and may depend on all of it.

`runner.draft_tree` chooses trees without one in one call. Here a tree is grown node by node, as the constraint is asked
about every path. Under the rule `rejection`, drafts are drawn instead.

R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthrus.decoding.constraints import Grammar, restrict
from orthrus.drafters.growth import Option, grow
from orthrus.drafters.tree import DraftTree
from orthrus.ngrams import Lookup
from orthrus.runner.draft_tree import BlockRows


def constrained_tree(
    rows: BlockRows,
    scores_RV: Tensor,
    temperatures_R: Sequence[float],
    nodes: int | None,
    grammar: Grammar,
    lookup: Lookup | None = None,
) -> DraftTree:
    """The likeliest tree of `nodes` nodes (None: a chain) of tokens that a constraint allows after their paths. Nothing
    follows the end of an answer. lookup: see `BlockRows.tree`."""

    def options(path: list[int]) -> Sequence[Option]:
        if not grammar.goes_on(path):
            return ()
        row, mask, found = len(path), grammar.mask(), []
        if row < len(scores_RV):
            scores_1V = scores_RV[row : row + 1].to(torch.float32, copy=True)
            restrict(scores_1V[0], mask)
            after = rows.after(path, scores_1V, temperatures_R[row])
            likely = zip(after.tokens, after.confidence, strict=True)
            found = [Option(token, math.log(own)) for token, own in likely if own > 0.0]
        if lookup is not None:
            found = [own for own in lookup.weigh(found, path) if mask[own.token]]
        return found[:1] if nodes is None else found

    return grow(options, len(scores_RV) if nodes is None else nodes)
