"""Objectives, one file each: what a diffusion row should say, given what the AR view says at its target.

An objective maps student logits and the teacher's to the gradient of the loss and the loss itself, for a chunk of rows;
the vocabulary is never stored for more rows than one chunk.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from torch import Tensor

from orthrus.training.ops import Ops


class Objective(Protocol):
    """The loss of a chunk of rows and its gradient."""

    def __call__(self, student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
        """Losses [N] (nats, fp32) and their gradients with respect to the student logits [N, V].

        The student logits may be overwritten.
        """
        ...


def names() -> list[str]:
    """The objectives there are, by listing this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Objective:
    """The objective of that name. Raises ValueError with the list where there is none."""
    if name not in names():
        raise ValueError(f"there is no objective {name!r}; objectives: {', '.join(names())}")
    found: Objective = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").loss_and_gradient
    return found
