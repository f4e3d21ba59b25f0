"""What passes between proposing and verifying: drafts, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Kind = Literal["agrees", "differs", "lookup"]


@dataclass(frozen=True)
class Draft:
    """Proposed tokens, and the distributions [m, V] they were drawn from where they were drawn.

    kind: where they come from: a block whose first row predicted the token before them (`agrees`) or did not
    (`differs`), or repeated text (`lookup`). start: the row of the block that gave the first of them. confidence: the
    top-1 probability of each row, in 0..1, where known.
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
