"""The choice of block roots: tokens whose successor is part of an assistant turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Span = tuple[int, int]


def candidates(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """All possible roots, ascending, each with the end of its turn.

    The token after a root lies inside the turn, so the last prompt token is a root, as at the start of decoding.
    """
    return [(root, end) for start, end in spans for root in range(max(start - 1, 0), end - 1)]


def choose(spans: Sequence[Span], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random distinct roots (all if there are fewer), ascending: (roots [S], ends [S])."""
    roots_ends = torch.tensor(candidates(spans)).view(-1, 2)
    chosen = torch.randperm(len(roots_ends), generator=generator)[:count].sort().values
    return roots_ends[chosen, 0], roots_ends[chosen, 1]
