"""Rotary position embeddings from fixed frequencies.

Guarantee: the cosine and sine of a position are the same bits however far the table has grown. They are computed in
blocks of one fixed shape, because a vectorised cosine may round differently in the tail of a longer loop.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from orthrus.decoder_config import RopeConfig

BLOCK = 512


class RopeTable:
    """Cosines and signed sines by position, in fp32, grown in blocks of 512 positions.

    Safe for many threads: both tables are published together, as one tuple that never changes; a lock is taken only to
    grow them.
    """

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self._frequencies = torch.tensor(config.inverse_frequencies, dtype=torch.float32)
        self._scaling = torch.where(self._frequencies == 0, 1.0, config.scaling)
        empty_TE = torch.empty(0, 2 * len(config.inverse_frequencies), device=device)
        self._published = empty_TE, empty_TE
        self._growth = Lock()

    def tables(self, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [T, E] of the positions from 0 on, `last` among them."""
        published = self._published
        if len(published[0]) > last:
            return published
        with self._growth:
            while len(self._published[0]) <= last:
                self._published = self._grown(*self._published)
            return self._published

    def rows(self, positions: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of `positions` (any shape, none beyond `last`), each [*positions, 1, E]."""
        cos_TE, sin_TE = self.tables(last)
        return cos_TE[positions].unsqueeze(-2), sin_TE[positions].unsqueeze(-2)

    @torch.inference_mode(mode=False)  # training reads the tables too, whoever made them
    def _grown(self, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Both tables and one block more."""
        start = len(cos_TE)
        angles = torch.outer(torch.arange(start, start + BLOCK, dtype=torch.float32), self._frequencies)
        cos, sin = (part.to(cos_TE.device) for part in (angles.cos() * self._scaling, angles.sin() * self._scaling))
        return torch.cat((cos_TE, torch.cat((cos, cos), dim=-1))), torch.cat((sin_TE, torch.cat((-sin, sin), dim=-1)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension of x [..., heads, E]; `sin` carries the sign of `rotate_half`.

    Only multiplications and additions, each rounded on its own: the result cannot depend on where in a vector loop an
    element falls, as that of a fused multiply-add could.
    """
    return (x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin).to(x.dtype)
