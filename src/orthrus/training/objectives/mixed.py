"""KL where the views differ, total variation where they agree: each row goes over from one to the other as it learns.

With the overlap a = sum over v of min(p_AR, p_diffusion) of a row, which is the share of its drafts that `rejection`
accepts, the loss is w KL(p_AR || p_diffusion) + (1 - w) (1 - a), w = exp(-3 a). The weight w is a constant to the
gradient, as in the hybrid loss of arXiv 2602.23881. Without overlap it is KL alone, whose gradient is large there, and
at an overlap of 0.8 nine tenths are total variation, which spends nothing on tokens that are never drafted. No
schedule is needed, so a run can be extended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.training.ops import Ops

RATE = 3.0
"""How fast the weight of KL falls with the overlap."""


def loss_and_gradient(student_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, ops: Ops) -> tuple[Tensor, Tensor]:
    """See the module. The gradient is w (q - p) + (1 - w) q (sum of q where q < p, less 1 where q < p)."""
    del targets_N, ops
    log_q_NV, log_p_NV = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
    q_NV, p_NV = log_q_NV.exp(), log_p_NV.exp()
    overlap_N1 = torch.minimum(p_NV, q_NV).sum(-1, keepdim=True)
    weight_N1 = (-RATE * overlap_N1).exp()
    divergence_N = (p_NV * log_p_NV.sub_(log_q_NV)).sum(-1)
    below_NV = (q_NV < p_NV).float()
    variation_NV = q_NV * ((q_NV * below_NV).sum(-1, keepdim=True) - below_NV)
    losses_N = weight_N1[:, 0] * divergence_N + (1 - weight_N1[:, 0]) * (1 - overlap_N1[:, 0])
    return losses_N, weight_N1 * (q_NV - p_NV) + (1 - weight_N1) * variation_NV


def outcome_losses(log_q_NX: Tensor, targets_NX: Tensor) -> Tensor:
    """The same for the draft head. Its last outcome, the rest of the vocabulary, is taken as rejected."""
    overlap_N = torch.minimum(targets_NX, log_q_NX.exp())[:, :-1].sum(-1)
    weight_N = (-RATE * overlap_N.detach()).exp()
    divergence_N = (targets_NX * (targets_NX.clamp(min=1e-30).log() - log_q_NX)).sum(-1)
    return weight_N * divergence_N + (1 - weight_N) * (1 - overlap_N)
