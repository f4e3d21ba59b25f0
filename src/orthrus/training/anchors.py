"""Where blocks are rooted: tokens after which the assistant still has something to say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Span = tuple[int, int]


def candidates(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """All possible roots, ascending, each with the end of its turn.

    A root's next token lies inside the turn, so the last token of the prompt is one, as it is when decoding begins.
    """
    return [(root, end) for start, end in spans for root in range(max(start - 1, 0), end - 1)]


def choose(spans: Sequence[Span], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` roots at random without repetition (all where there are fewer), ascending: (roots [S], ends [S])."""
    found = torch.tensor(candidates(spans)).view(-1, 2)
    picked = torch.randperm(len(found), generator=generator)[:count].sort().values
    return found[picked, 0], found[picked, 1]
