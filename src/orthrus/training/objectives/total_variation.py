"""Total variation distance: 1 - sum over v of min(p_AR, p_diffusion), the share of drafts that `rejection` rejects."""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.training.ops import Ops


def loss_and_gradient(student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
    """1 - sum of min(p, q) per row, and its gradient q (sum of q where q < p, less 1 where q < p)."""
    del targets_N, ops
    q_NV, p_NV = student_NV.float().softmax(-1), teacher_NV.float().softmax(-1)
    losses_N = 1 - torch.minimum(p_NV, q_NV).sum(-1)
    below_NV = (q_NV < p_NV).float()
    return losses_N, q_NV * ((q_NV * below_NV).sum(-1, keepdim=True) - below_NV)


def outcome_losses(log_q_NX: Tensor, targets_NX: Tensor) -> Tensor:
    """The same for the draft head. Its last outcome, the rest of the vocabulary, is taken as rejected: a draft is one
    of the candidates."""
    return 1 - torch.minimum(targets_NX, log_q_NX.exp())[:, :-1].sum(-1)
