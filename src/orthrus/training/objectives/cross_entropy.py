"""Cross-entropy on the tokens of the text (the objective of the later official trainer)."""

from __future__ import annotations

from torch import Tensor

from orthrus.training.ops import Ops

HEAD_TOKEN_SHARE = 1.0
"""The draft head too learns from the tokens of the text alone."""


def loss_and_gradient(student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
    """-log q(target) per row, and its gradient q - onehot(target)."""
    del teacher_NV, ops
    log_q = student_NV.float().log_softmax(-1)
    losses_N = -log_q.gather(-1, targets_N[:, None]).squeeze(-1)
    gradient_NV = log_q.exp_()
    gradient_NV[range(len(targets_N)), targets_N] -= 1
    return losses_N, gradient_NV
