"""The choice of a tree of drafts from the rows of a block: the reference implementation, in torch.

Each row of a block has a few candidates. A node of the tree is a candidate of the row of its depth, after a path of
candidates of the rows before it. The tree holds the nodes whose paths have the largest probabilities. With a draft head
the probabilities of a row depend on the token before it; without one the rows are independent.

Shapes: R rows, S rows of hidden states, C candidates, N = R * C; the rest as in `orthrus.config`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from orthrus.model.draft_head import CANDIDATES, DraftHead

LARGEST = 1e30
"""Logits are clamped to this; those that are NaN or below minus this are no candidates."""


class DraftTree(NamedTuple):
    """Nodes in order of falling path probability. parents: node numbers, -1 for a child of the root. confidence: the
    probability of each node, given its parent."""

    tokens: list[int]
    parents: list[int]
    confidence: list[float]


@dataclass(frozen=True)
class HeadInputs:
    """What a head needs beside logits: the frozen embeddings [V, D], and the final hidden states of the rows.

    first_token: the token before the first row, where it is known; `hidden_SD` then starts with the row before the
    first, and S = R + 1. Without it S = R, and the first row, which knows the token before it, is left as it is.
    """

    head: DraftHead
    embedding_VD: Tensor
    hidden_SD: Tensor
    first_token: int | None = None


def draft_tree(
    logits_RV: Tensor, temperatures: Sequence[float], nodes: int | None, inputs: HeadInputs | None = None
) -> DraftTree:
    """The `nodes` likeliest nodes, or fewer where the rows have fewer. None: a chain, in which the likeliest candidate
    of each row follows that of the row before it, up to the first row without any.

    The probabilities of row r are the softmax of its logits over `temperatures[r]`; a head changes the logits of the
    candidates.
    """
    scores_RV = logits_RV.float().nan_to_num(nan=-torch.inf).clamp(-2 * LARGEST, LARGEST)
    count = min(CANDIDATES, scores_RV.shape[1])
    top_RC, tokens_RC = scores_RV.topk(count)
    scaled = scores_RV / torch.tensor(temperatures, device=scores_RV.device)[:, None]
    rest_R = scaled.scatter(1, tokens_RC, -torch.inf).logsumexp(-1)
    corrections_RPC = _corrections(inputs, tokens_RC) if inputs is not None else torch.zeros_like(top_RC)[:, None]
    corrected = (top_RC[:, None] + corrections_RPC) / torch.tensor(temperatures, device=scaled.device)[:, None, None]
    rests = rest_R[:, None, None].expand(-1, corrected.shape[1], 1)
    log_p = corrected - torch.cat((corrected, rests), dim=-1).logsumexp(-1, keepdim=True)
    log_p = log_p.masked_fill((top_RC < -LARGEST)[:, None], -torch.inf)
    return best_first(log_p.tolist(), tokens_RC.tolist(), nodes)


def _corrections(inputs: HeadInputs, tokens_RC: Tensor) -> Tensor:
    """What is added to the logits of candidate c of row r after candidate p of the row before: [R, C, C]."""
    (rows, count), embedding, head = tokens_RC.shape, inputs.embedding_VD, inputs.head
    corrections = torch.zeros(rows, count, count, device=tokens_RC.device)
    known = inputs.first_token is not None
    hidden_SD = inputs.hidden_SD
    assert len(hidden_SD) == rows + known
    context_RM = head.context(hidden_SD[1:].float(), hidden_SD[:-1].float())
    before_RP = tokens_RC[:-1]
    if known:
        first = torch.full((1, count), inputs.first_token or 0, device=tokens_RC.device)
        before_RP = torch.cat((first, before_RP))
    corrected = slice(0 if known else 1, rows)
    directions_RPD = head.direction(context_RM[:, None], embedding[before_RP].float())
    corrections[corrected] = directions_RPD @ embedding[tokens_RC[corrected]].float().transpose(1, 2)
    return corrections


def best_first(log_p: list[list[list[float]]], candidates: list[list[int]], nodes: int | None) -> DraftTree:
    """Take the likeliest node that is left, and add its children to those that are left. Of equals, the first added.

    log_p[r][p][c]: of candidate c of row r after candidate p of the row before; of any, where there is one p only.
    """
    tree = DraftTree([], [], [])
    left: list[tuple[float, int, int, int, int, float]] = []
    added = 0

    def add_children(parent: int, row: int, before: int, path: float) -> None:
        nonlocal added
        of_row = log_p[row][before if before < len(log_p[row]) else 0]
        likeliest = max((own for own in of_row if own > -torch.inf), default=0.0)
        for choice, own in enumerate(of_row):
            if own > -torch.inf and (nodes is not None or choice == of_row.index(likeliest)):
                heapq.heappush(left, (-(path + own), added, parent, row, choice, own))
            added += 1

    if log_p:
        add_children(-1, 0, 0, 0.0)
    while left and (nodes is None or len(tree.tokens) < nodes):
        negative, _, parent, row, choice, own = heapq.heappop(left)
        tree.tokens.append(candidates[row][choice])
        tree.parents.append(parent)
        tree.confidence.append(float(torch.tensor(own).exp()))
        if row + 1 < len(log_p):
            add_children(len(tree.tokens) - 1, row + 1, choice, -negative)
    return tree
