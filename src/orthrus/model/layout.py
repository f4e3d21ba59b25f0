"""How the rows of a pass are laid out: which tokens, where their keys go, what they attend to.

Matrix products see the rows of all sequences one after another; attention sees a rectangle of as many rows as the
longest sequence has, in which the rows that a sequence lacks are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.model.kernels import Places
from orthrus.model.layers import ViewName
from orthrus.model.masks import Bias, causal_bias
from orthrus.model.probes import AttentionChoice
from orthrus.model.rope import RopeTable


@dataclass(frozen=True)
class Part:
    """The rows of a pass that go through one view: tokens [N], padding last, where they stand, what they attend to.

    Several biases serve as many equal runs of attended rows, each in a call of its own.
    """

    view: ViewName
    tokens_N: Tensor
    places: Places
    biases: list[Bias]


@dataclass(frozen=True)
class Layout:
    """What all passes of a decoder share. `multiple`: of rows that its products want; `like`: dtype and device."""

    rope: RopeTable
    attention: AttentionChoice
    multiple: int
    like: Tensor
    norm_eps: float

    def ar(self, tokens: Sequence[Sequence[int]], lengths: list[int], span: int) -> Part:
        """Causal rows after each cached length, in descending order of position (see `causal_bias`): the last rows of
        as many as the longest sequence has."""
        R = max(len(own) for own in tokens)
        attended = self.attention.padded(R)
        rows: list[int] = []
        positions: list[int] = []
        flat: list[int] = []
        for b, (own, length) in enumerate(zip(tokens, lengths, strict=True)):
            rows += range(b * attended + R - len(own), b * attended + R)
            positions += range(length + len(own) - 1, length - 1, -1)
            flat += own[::-1]
        places = self._places(rows, positions, positions, (len(tokens), attended))
        return Part("ar", self._tokens(flat), places, [causal_bias(lengths, R, attended, span, self.like)])

    def blocks(
        self,
        roots: Sequence[Sequence[int]],
        lengths: list[int],
        candidates: Sequence[int],
        width: int,
        mask: int,
        where: tuple[list[int], list[Bias]],
    ) -> Part:
        """Blocks of a root and masks, from length + candidates[j] on; `where`: their first slots, what each sees."""
        attended, masks = len(candidates) * width, [mask] * (width - 1)
        rows: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        flat: list[int] = []
        for b, (own, length, slot) in enumerate(zip(roots, lengths, where[0], strict=True)):
            rows += range(b * attended, b * attended + len(own) * width)
            slots += range(slot, slot + len(own) * width)
            for root, candidate in zip(own, candidates, strict=False):
                positions += range(length + candidate, length + candidate + width)
                flat += [root, *masks]
        places = self._places(rows, positions, slots, (len(roots), attended))
        return Part("diffusion", self._tokens(flat), places, where[1])

    def _tokens(self, flat: list[int]) -> Tensor:
        """Tokens of a part, with as many after them as the matrix products want."""
        return torch.tensor([*flat, *[0] * (-len(flat) % self.multiple)], device=self.like.device)

    def _places(self, rows: list[int], positions: list[int], slots: list[int], attended: tuple[int, int]) -> Places:
        rows_N, positions_N, slots_N = torch.tensor([rows, positions, slots], device=self.like.device)
        return Places(rows_N, slots_N, *self.rope.rows(positions_N, max(positions)), attended, self.norm_eps)
