"""Training objectives, one file each: the loss of a diffusion row against the AR view at the same target.

An objective maps student and teacher logits of a chunk of rows to losses and their gradients, so logits are allocated
for one chunk at a time. The loss of a step is the weighted mean over all rows, unless the file has an `over_blocks` of
its own. The draft head is trained on a few outcomes per row, by cross-entropy unless the file has `outcome_losses`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from orthrus.training.ops import Ops

HEAD_TOKEN_SHARE = 0.2
"""The weight of the tokens of the text in the targets of the draft head; the rest is that of the AR view."""


class RowLosses(Protocol):
    """The losses of a chunk of rows and their gradient."""

    def __call__(self, student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Losses [N] (fp32) and their gradients with respect to the student logits [N, V].

        The student logits may be overwritten.
        """
        ...


class OverBlocks(Protocol):
    """The loss of a step from those of its rows."""

    def __call__(self, losses_N: Tensor, *, weights_N: Tensor, inside_SM: Tensor) -> Tensor:
        """Differentiable with respect to the losses. `inside_SM` marks the rows [N] in the blocks [S, M]."""
        ...


@dataclass(frozen=True)
class Objective:
    """The losses of rows over the vocabulary; those of the outcomes of a draft head, from log probabilities and targets
    [N, X], with the share of tokens of the text in these targets; and the loss of a step from those of its rows."""

    rows: RowLosses
    outcomes: Callable[[Tensor, Tensor], Tensor]
    head_token_share: float
    over_blocks: OverBlocks


def shares(weights_N: Tensor) -> Tensor:
    """Weights over their sum; zero where all of them are."""
    return weights_N / weights_N.sum().clamp(min=torch.finfo(weights_N.dtype).tiny)


def weighted_mean(losses_N: Tensor, *, weights_N: Tensor, inside_SM: Tensor) -> Tensor:
    """The mean over rows."""
    del inside_SM
    return losses_N @ shares(weights_N)


def cross_entropies(log_q_NX: Tensor, targets_NX: Tensor) -> Tensor:
    """In nats."""
    return -(targets_NX * log_q_NX).sum(-1)


def names() -> list[str]:
    """All objectives, from the files of this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Objective:
    """Load an objective by name. Raises ValueError with the list of names where there is none of that name."""
    if name not in names():
        raise ValueError(f"there is no objective {name!r}; objectives: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return Objective(
        module.loss_and_gradient,
        getattr(module, "outcome_losses", cross_entropies),
        getattr(module, "HEAD_TOKEN_SHARE", HEAD_TOKEN_SHARE),
        getattr(module, "over_blocks", weighted_mean),
    )
