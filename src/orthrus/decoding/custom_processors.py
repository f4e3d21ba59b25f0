"""Logit processors of the caller: functions of the tokens before a row and of its scores.

A pass verifies rows of several positions, of which only some are kept, so such a function may depend on nothing but its
arguments. That is checked: every row is computed again after the next one, and must get the same bits, so a function
that counts its calls, or draws random numbers, is refused.

V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthrus.config import LogitsProcessor


class CustomProcessors:
    """The functions of one sequence, applied in order, and the tokens that it has kept."""

    def __init__(self, functions: Sequence[LogitsProcessor], prompt: Sequence[int]) -> None:
        self._functions, self._tokens = functions, list(prompt)
        self._last: tuple[list[int], Tensor, Tensor] | None = None

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps."""
        self._tokens.extend(tokens)

    def apply(self, scores_V: Tensor, path: Sequence[int]) -> Tensor:
        """The new scores [V], fp32, of a row after the kept tokens and `path`. Raises ValueError where a function gives
        no scores, leaves no token, or gives other scores for a row when it is called again."""
        row = [*self._tokens, *path], scores_V.clone()
        new_V = self._scores(*row)
        before = self._last or (*row, new_V)
        if not torch.equal(self._scores(*before[:2]), before[2]):
            raise ValueError(
                "logits_processors give other scores when they are called again with the same tokens and scores: they"
                " must depend on these alone, not on how often they are called, since a pass verifies several rows and"
                " keeps some of them. Read the position from the number of tokens."
            )
        self._last = *row, new_V
        return new_V.clone()

    def _scores(self, tokens: list[int], scores_V: Tensor) -> Tensor:
        for number, function in enumerate(self._functions):
            new_V = function(list(tokens), scores_V.clone())
            name = f"logits_processors[{number}]"
            if not isinstance(new_V, Tensor) or new_V.shape != scores_V.shape:
                given = f"shape {list(new_V.shape)}" if isinstance(new_V, Tensor) else type(new_V).__name__
                raise ValueError(f"{name} must return a tensor of scores of shape {list(scores_V.shape)}, not {given}")
            if new_V.isnan().any() or not (new_V > -math.inf).any():
                raise ValueError(f"{name} must leave a token: its scores are NaN, or all of them -inf")
            scores_V = new_V.to(scores_V)
        return scores_V
