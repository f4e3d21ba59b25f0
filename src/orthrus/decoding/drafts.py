"""The records that link proposal and verification: drafts, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Kind = Literal["agrees", "differs", "lookup"]


@dataclass(frozen=True)
class Draft:
    """Proposed tokens.

    q_RV: the distributions [m, V] that the tokens were sampled from; None if they were not sampled. kind: the source of
    the drafts: a block that predicted the token before them (`agrees`), a block that did not (`differs`), or prompt
    lookup (`lookup`). start: the row of the block that predicted the first draft. confidence: the top-1 probability of
    each row, from 0 to 1; empty if unknown.
    """

    tokens: list[int] = field(default_factory=list)
    q_RV: Tensor | None = None
    kind: Kind = "agrees"
    start: int = 0
    confidence: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one verification: `accepted` drafts and the bonus token after them."""

    tokens: list[int]
    accepted: int


@dataclass(frozen=True)
class TokenLogprobs:
    """A token and its log probability, with those of the most likely tokens in its place, likeliest first.

    Natural logarithms of the model's own distribution: before temperature, penalties and constraints.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
