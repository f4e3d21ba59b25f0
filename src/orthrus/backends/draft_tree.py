"""The choice of a tree of drafts from the rows of a block: the reference implementation, in torch.

Each row of a block has a few candidates. A node of the tree is a candidate of the row of its depth, after a path of
candidates of the rows before it. The tree holds the nodes whose paths have the largest probabilities. With a draft head
the probabilities of a row depend on the token before it; without one the rows are independent. With the text before the
block, what followed the path when it occurred before corrects them and is a candidate too: see `orthrus.ngrams`.

Shapes: R rows, S rows of hidden states, P tokens before a row, C candidates; the rest as in `orthrus.config`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.drafters.growth import Option, grow
from orthrus.drafters.tree import DraftTree
from orthrus.model.draft_head import CANDIDATES, DraftHead
from orthrus.model.embedding import Embedding
from orthrus.ngrams import Lookup

LARGEST = 1e30
"""Logits are clamped to this; those that are NaN or below minus this are no candidates."""


@dataclass(frozen=True)
class HeadInputs:
    """What a head needs beside logits: the frozen embeddings, and the final hidden states of the rows.

    first_token: the token before the first row, where it is known; `hidden_SD` then starts with the row before the
    first, and S = R + 1. Without it S = R, and the first row, which knows the token before it, is left as it is.
    """

    head: DraftHead
    embedding: Embedding
    hidden_SD: Tensor
    first_token: int | None = None


def draft_tree(
    logits_RV: Tensor,
    temperatures: Sequence[float],
    nodes: int | None,
    inputs: HeadInputs | None = None,
    lookup: Lookup | None = None,
) -> DraftTree:
    """The `nodes` likeliest nodes, or fewer where there are fewer. None: a chain, in which the likeliest candidate of
    each row follows that of the row before it, up to the first row without any.

    The probabilities of row r are the softmax of its logits over `temperatures[r]`; a head changes the logits of the
    candidates. With `lookup`, matches of the text correct the probabilities, and go on below the last row.
    """
    rows = _Rows(logits_RV, temperatures, inputs)

    def options(path: list[int]) -> Sequence[Option]:
        found: Sequence[Option] = rows.after(path)
        if lookup is not None:
            found = lookup.weigh(found, path)
        return found[:1] if nodes is None else found

    return grow(options, len(logits_RV) if nodes is None else nodes)


def candidates_after(
    path: Sequence[int], tokens: Sequence[list[int]], log_p: Sequence[list[list[float]]]
) -> list[Option]:
    """The candidates of the row that follows a path of candidates, likeliest first.

    log_p[r][p][c]: of candidate c of row r after candidate p of the row before; of any, where there is one p only.
    """
    row = len(path)
    before = tokens[row - 1].index(path[-1]) if row and len(log_p[row]) > 1 else 0
    return _options(tokens[row], log_p[row][before])


def _options(tokens: list[int], log_p: list[float]) -> list[Option]:
    pairs = [Option(token, own) for token, own in zip(tokens, log_p, strict=True) if own > -math.inf]
    return sorted(pairs, key=lambda option: -option.log_p)


class _Rows:
    """The candidates of the rows of a block, and their log probabilities after every candidate of the row before."""

    def __init__(self, logits_RV: Tensor, temperatures: Sequence[float], inputs: HeadInputs | None) -> None:
        scores_RV = logits_RV.float().nan_to_num(nan=-torch.inf).clamp(-2 * LARGEST, LARGEST)
        self._inputs, self._temperatures_R = inputs, torch.tensor(temperatures, device=scores_RV.device)
        self._top_RC, self._tokens_RC = scores_RV.topk(min(CANDIDATES, scores_RV.shape[1]))
        scaled = scores_RV / self._temperatures_R[:, None]
        self._rest_R = scaled.scatter(1, self._tokens_RC, -torch.inf).logsumexp(-1)
        self._tokens: list[list[int]] = self._tokens_RC.tolist()
        self._log_p: list[list[list[float]]] = []
        if self._tokens:
            self._log_p += self._of_rows(0, None if inputs is None else inputs.first_token)
            self._log_p += self._of_rows(1, None if inputs is None else self._tokens_RC[:-1])

    def after(self, path: Sequence[int]) -> list[Option]:
        """The candidates after a path, likeliest first; none below the last row."""
        row = len(path)
        if row >= len(self._tokens):
            return []
        if row and self._inputs is not None and path[-1] not in self._tokens[row - 1]:
            return _options(self._tokens[row], self._of_rows(row, path[-1])[0][0])
        return candidates_after(path, self._tokens, self._log_p)

    def _of_rows(self, first: int, before: Tensor | int | None) -> list[list[list[float]]]:
        """The log probabilities [.., P, C] of the rows from `first` on after the tokens `before` [.., P], or of one row
        after one token."""
        one = not isinstance(before, Tensor) and (first == 0 or before is not None)
        rows = slice(first, first + 1 if one else None)
        top_RC, over_R = self._top_RC[rows], self._temperatures_R[rows]
        corrected_RPC = top_RC[:, None]
        if before is not None:
            corrected_RPC = corrected_RPC + self._corrections(rows, before)
        scaled_RPC = corrected_RPC / over_R[:, None, None]
        rests = self._rest_R[rows][:, None, None].expand(-1, scaled_RPC.shape[1], 1)
        log_p = scaled_RPC - torch.cat((scaled_RPC, rests), dim=-1).logsumexp(-1, keepdim=True)
        found: list[list[list[float]]] = log_p.masked_fill((top_RC < -LARGEST)[:, None], -torch.inf).tolist()
        return found

    def _corrections(self, rows: slice, before: Tensor | int) -> Tensor:
        """What is added to the logits of the candidates of some rows after the tokens `before`: [.., P, C]."""
        assert self._inputs is not None
        head, embedding, hidden_SD = self._inputs.head, self._inputs.embedding, self._inputs.hidden_SD
        known = self._inputs.first_token is not None
        assert len(hidden_SD) == len(self._tokens) + known
        tokens_RC = self._tokens_RC[rows]
        before_RP = before if isinstance(before, Tensor) else torch.full_like(tokens_RC[:, :1], before)
        start = rows.start + known
        own_RD, before_RD = hidden_SD[start:][: len(tokens_RC)], hidden_SD[start - 1 :][: len(tokens_RC)]
        context_RM = head.context(own_RD.float(), before_RD.float())
        directions_RPD = head.direction(context_RM[:, None], embedding(before_RP).float())
        return directions_RPD @ embedding(tokens_RC).float().transpose(1, 2)
