"""Rotary position embeddings from fixed frequencies.

Guarantee: the cosine and sine of a position are the same bits however far the table has grown. They are computed in
blocks of one fixed shape, because a vectorised cosine may round differently in the tail of a longer loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.config import RopeConfig

BLOCK = 512


class RopeTable:
    """Cosines and signed sines by position, in fp32, grown in blocks of 512 positions."""

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self._frequencies = torch.tensor(config.inverse_frequencies, dtype=torch.float32)
        self._scaling = config.scaling
        half = len(config.inverse_frequencies)
        self._cos_TE = torch.empty(0, 2 * half, device=device)
        self._sin_TE = torch.empty(0, 2 * half, device=device)

    def tables(self, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [T, E] of the positions from 0 on, `last` among them."""
        while len(self._cos_TE) <= last:
            self._grow()
        return self._cos_TE, self._sin_TE

    def rows(self, positions: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of `positions` (any shape, none beyond `last`), each [*positions, 1, E]."""
        cos_TE, sin_TE = self.tables(last)
        return cos_TE[positions].unsqueeze(-2), sin_TE[positions].unsqueeze(-2)

    def _grow(self) -> None:
        start = len(self._cos_TE)
        angles = torch.outer(torch.arange(start, start + BLOCK, dtype=torch.float32), self._frequencies)
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        device = self._cos_TE.device
        self._cos_TE = torch.cat((self._cos_TE, torch.cat((cos, cos), dim=-1).to(device)))
        self._sin_TE = torch.cat((self._sin_TE, torch.cat((-sin, sin), dim=-1).to(device)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension of x [..., heads, E]; `sin` carries the sign of `rotate_half`.

    Only multiplications and additions, each rounded on its own: the result cannot depend on where in a vector loop an
    element falls, as that of a fused multiply-add could.
    """
    return (x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin).to(x.dtype)
