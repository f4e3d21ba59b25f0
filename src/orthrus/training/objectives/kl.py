"""Forward KL(p_AR || p_diffusion) over the full vocabulary (arXiv 2605.12825, the paper's recipe)."""

from __future__ import annotations

from torch import Tensor


def loss_and_gradient(student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over v of p (log p - log q) per row, and q - p."""
    del targets_N
    log_q, log_p = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
    p = log_p.exp()
    losses_N = (p * (log_p - log_q)).sum(-1)
    return losses_N, log_q.exp_().sub_(p)
