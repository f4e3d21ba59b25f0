"""Forward KL(p_AR || p_diffusion) over the full vocabulary (the recipe of arXiv 2605.12825)."""

from __future__ import annotations

from torch import Tensor

from orthrus.training.ops import Ops


def loss_and_gradient(student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
    """Sum over v of p (log p - log q) per row, and its gradient q - p."""
    del targets_N
    return ops.forward_kl(student_NV, teacher_NV)
