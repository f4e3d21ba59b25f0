"""Training objectives, one file each: the loss of a diffusion row against the AR view at the same target.

An objective maps student and teacher logits of a chunk of rows to losses and their gradients, so logits are allocated
for one chunk at a time.
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
    """All objectives, from the files of this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Objective:
    """Load an objective by name. Raises ValueError with the list of names where there is none of that name."""
    if name not in names():
        raise ValueError(f"there is no objective {name!r}; objectives: {', '.join(names())}")
    objective: Objective = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").loss_and_gradient
    return objective
