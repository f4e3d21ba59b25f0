"""The batch of a training step: a packed text, and the draft blocks rooted in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """A packed text and the draft blocks rooted in it, in ascending order.

    tokens_T: the concatenated documents, which begin at `starts` (the first at 0). roots_S: positions of the roots.
    ends_S: the end position of the assistant turn of each root; targets lie before it. A block has `block_size` rows;
    of these the first `trained_rows` are trained, if they have a target.
    """

    tokens_T: Tensor
    starts: tuple[int, ...]
    roots_S: Tensor
    ends_S: Tensor
    block_size: int
    trained_rows: int

    def __post_init__(self) -> None:
        if len(self.roots_S) == 0:
            raise ValueError("the text has no roots; expected at least one")
        if bool((self.ends_S < self.roots_S + 2).any()) or int(self.ends_S.max()) > len(self.tokens_T):
            raise ValueError("every root needs a target inside its turn and inside the text")
        if bool((self.roots_S.diff() < 0).any()):
            raise ValueError("roots must ascend")

    @property
    def offsets_T(self) -> Tensor:
        """The position of each token within its document."""
        starts = torch.tensor(self.starts)
        offsets = torch.arange(len(self.tokens_T)) - starts.repeat_interleave(self._lengths)
        return offsets.to(self.tokens_T.device)

    @property
    def targets_SM(self) -> Tensor:
        """The positions of the targets: row j predicts the token j + 1 positions after the root."""
        return self.roots_S[:, None] + 1 + torch.arange(self.trained_rows, device=self.roots_S.device)

    @property
    def trained_SM(self) -> Tensor:
        """Which rows have a target inside the turn."""
        return self.targets_SM < self.ends_S[:, None]

    @property
    def _lengths(self) -> Tensor:
        return torch.tensor([*self.starts, len(self.tokens_T)]).diff()

    def to(self, device: torch.device) -> Blocks:
        """A copy on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens_T", "roots_S", "ends_S")}
        return replace(self, **moved)

    def documents(self) -> list[tuple[slice, slice]]:
        """The slices of tokens and of roots of each document that has roots."""
        slices = []
        for start, stop in zip(self.starts, (*self.starts[1:], len(self.tokens_T)), strict=True):
            first, last = (int(torch.searchsorted(self.roots_S, edge)) for edge in (start, stop))
            if last > first:
                slices.append((slice(start, stop), slice(first, last)))
        return slices
