"""How the rows of a pass are laid out: which tokens, where their keys go, what they attend to.

Matrix products see the rows of all sequences one after another; attention sees a rectangle of as many rows as the
longest sequence has, in which the rows that a sequence lacks are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from orthrus.model.kernels import Places, Sight
from orthrus.model.layers import ViewName
from orthrus.model.masks import Bias, causal_bias
from orthrus.model.probes import AttentionChoice
from orthrus.model.rope import RopeTable


@dataclass(frozen=True)
class Part:
    """The rows of a pass that go through one view: tokens [N], padding last, and where they stand.

    What they attend to is told twice, for two kinds of kernel: `biases` over the rectangle, several of which serve as
    many equal runs of its rows, each in a call of its own; and `Sight`, row by row.
    """

    view: ViewName
    tokens_N: Tensor
    places: Places
    sight: Sight
    make_biases: Callable[[], list[Bias]]

    @cached_property
    def biases(self) -> list[Bias]:
        """Made when first asked for."""
        return self.make_biases()


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
        sequences = [b for b, own in enumerate(tokens) for _ in own]
        rows: list[int] = []
        positions: list[int] = []
        flat: list[int] = []
        runs: list[list[int]] = []
        for b, (own, length) in enumerate(zip(tokens, lengths, strict=True)):
            runs.append([len(flat), len(own), b, 0, 0])
            rows += range(b * attended + R - len(own), b * attended + R)
            positions += range(length + len(own) - 1, length - 1, -1)
            flat += own[::-1]
        places = self._places([rows, sequences, positions], positions, (len(tokens), attended))
        sight = self._sight(runs, [position + 1 for position in positions])
        return Part(
            "ar", self._tokens(flat), places, sight, lambda: [causal_bias(lengths, R, attended, span, self.like)]
        )

    def blocks(
        self,
        roots: Sequence[Sequence[int]],
        lengths: list[int],
        candidates: Sequence[int],
        width: int,
        mask: int,
        where: tuple[list[int], Callable[[], list[Bias]]],
    ) -> Part:
        """Blocks of a root and masks, from length + candidates[j] on; `where`: their first slots, what each sees."""
        attended, masks = len(candidates) * width, [mask] * (width - 1)
        rows: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        flat: list[int] = []
        runs: list[list[int]] = []
        seen: list[int] = []
        for b, (own, length, slot) in enumerate(zip(roots, lengths, where[0], strict=True)):
            rows += range(b * attended, b * attended + len(own) * width)
            slots += range(slot, slot + len(own) * width)
            for j, (root, candidate) in enumerate(zip(own, candidates, strict=False)):
                runs.append([len(flat), width, b, slot + j * width, slot + (j + 1) * width])
                seen += [length + candidate] * width
                positions += range(length + candidate, length + candidate + width)
                flat += [root, *masks]
        sequences = [run[2] for run in runs for _ in range(width)]
        places = self._places([rows, sequences, slots], positions, (len(roots), attended))
        return Part("diffusion", self._tokens(flat), places, self._sight(runs, seen), where[1])

    def _tokens(self, flat: list[int]) -> Tensor:
        """Tokens of a part, with as many after them as the matrix products want."""
        return torch.tensor([*flat, *[0] * (-len(flat) % self.multiple)], device=self.like.device)

    def _sight(self, runs: list[list[int]], seen: list[int]) -> Sight:
        device = self.like.device
        most = max((run[1] for run in runs), default=0)
        return Sight(torch.tensor(runs, device=device), torch.tensor(seen, device=device), most)

    def _places(self, table: list[list[int]], positions: list[int], attended: tuple[int, int]) -> Places:
        if self.attention.sees:
            table[0], attended = list(range(len(positions))), (1, len(positions))
        table_4N = torch.tensor([*table, positions], device=self.like.device)
        return Places(table_4N[:3], *self.rope.rows(table_4N[3], max(positions)), attended, self.norm_eps)
