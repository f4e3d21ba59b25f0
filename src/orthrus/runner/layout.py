"""How the rows of a pass are laid out: which tokens, where their keys go, what they attend to.

Matrix products see the rows of all sequences one after another; attention sees a rectangle of as many rows as the
longest sequence has, in which the rows that a sequence lacks are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from orthrus.backends.invariance import AttentionChoice
from orthrus.backends.torch import Places, Sight
from orthrus.masks import Bias, causal_bias
from orthrus.model.layers import ViewName
from orthrus.model.rope import RopeTable


@dataclass(frozen=True)
class Part:
    """The rows of a pass that go through one view: tokens, padding last, and where they stand, as plain numbers, of
    which tensors are made when first asked for.

    table: rows of the `attended` rectangle, sequences, slots (see `Places`); runs and seen: see `Sight`. What rows
    attend to is told twice, for two kinds of kernel: by `Sight`, and by `biases` over the rectangle, several of which
    serve as many equal runs of its rows, each in a call of its own.
    """

    view: ViewName
    layout: Layout
    tokens: list[int]
    table: list[list[int]]
    positions: list[int]
    attended: tuple[int, int]
    runs: list[list[int]]
    seen: list[int]
    make_biases: Callable[[], list[Bias]]

    @property
    def numbers(self) -> list[list[int]]:
        """All that tells it from other parts of its shape, in lists."""
        return [self.tokens, [*chain(*self.table)], self.positions, [*chain(*self.runs)], self.seen]

    @property
    def most(self) -> int:
        """Rows of its longest run."""
        return max((run[1] for run in self.runs), default=0)

    @cached_property
    def tensors(self) -> Sequence[Tensor]:
        """The same on the device."""
        return [torch.tensor(values, device=self.layout.like.device) for values in self.numbers]

    def over(self, tensors: Sequence[Tensor]) -> Part:
        """A part of this shape whose numbers are those in `tensors`, whatever they will be."""
        part = replace(self)
        vars(part)["tensors"] = tensors
        return part

    @property
    def tokens_N(self) -> Tensor:
        """Tokens of all rows, padding included."""
        return self.tensors[0]

    @cached_property
    def places(self) -> Places:
        """Where its real rows stand."""
        rope = self.layout.rope.rows(self.tensors[2], max(self.positions))
        return Places(self.tensors[1].view(3, -1), *rope, self.attended, self.layout.norm_eps)

    @cached_property
    def sight(self) -> Sight:
        """Which keys they see."""
        return Sight(self.tensors[3].view(-1, 5), self.tensors[4], self.most)

    @cached_property
    def biases(self) -> list[Bias]:
        """The same as masks."""
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
        seen = [position + 1 for position in positions]
        return self._part(
            "ar", flat, [rows, sequences, positions], positions, (len(tokens), attended), (runs, seen),
            lambda: [causal_bias(lengths, R, attended, span, self.like)],
        )  # fmt: skip

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
        return self._part(
            "diffusion", flat, [rows, sequences, slots], positions, (len(roots), attended), (runs, seen), where[1]
        )

    def _part(
        self,
        view: ViewName,
        flat: list[int],
        table: list[list[int]],
        positions: list[int],
        attended: tuple[int, int],
        sight: tuple[list[list[int]], list[int]],
        make_biases: Callable[[], list[Bias]],
    ) -> Part:
        """With as many tokens after its own as matrix products want; rows are their own rectangle where no mask is."""
        if self.attention.sees:
            table[0], attended = list(range(len(positions))), (1, len(positions))
        tokens = [*flat, *[0] * (-len(flat) % self.multiple)]
        return Part(view, self, tokens, table, positions, attended, *sight, make_biases)
