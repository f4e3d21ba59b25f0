"""The loss over the vocabulary and its gradient, in chunks: no tensor of shape rows x vocabulary is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.training.ops import Ops

CHUNK_POSITIONS = 64
"""Distinct targets per chunk of teacher logits; up to K rows share a target."""
SLICE_ROWS = 16
"""Student rows per call of the objective: few enough that their logits stay in the CPU caches."""


class Head(NamedTuple):
    """The frozen head [V, D], and the soft cap of its logits (see `DecoderConfig`)."""

    weight_VD: Tensor
    soft_cap: float | None = None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V]."""
        logits_NV = F.linear(hidden_ND, self.weight_VD)
        return logits_NV if self.soft_cap is None else torch.tanh(logits_NV / self.soft_cap) * self.soft_cap

    def backward(self, grad_NV: Tensor, logits_NV: Tensor | None) -> Tensor:
        """The gradient with respect to the hidden states [N, D]; a soft cap needs the logits."""
        if self.soft_cap is not None and logits_NV is not None:
            grad_NV = grad_NV * (1 - (logits_NV / self.soft_cap) ** 2)
        return grad_NV @ self.weight_VD


class Targets(NamedTuple):
    """The targets of the rows: their positions in the text [N], and the tokens there [N]."""

    positions_N: Tensor
    tokens_N: Tensor


class VocabularyLoss(torch.autograd.Function):
    """The loss of all rows, and its gradient with respect to their hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        teacher_TD: Tensor,
        head: Head,
        targets: Targets,
        over_blocks: Callable[[Tensor], Tensor],
        row_losses: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        ops: Ops,
    ) -> tuple[Tensor, Tensor]:
        """Loss, and which rows agree with the teacher. Rows are sorted by target: each target needs one teacher row.

        `row_losses` maps a chunk of rows to losses and their gradients, `over_blocks` the losses of all rows to one.
        """
        order_N = targets.positions_N.argsort(stable=True)
        distinct_P, which_N = targets.positions_N[order_N].unique_consecutive(return_inverse=True)
        losses, agreed = hidden_ND.new_empty(len(order_N), dtype=torch.float32), order_N.new_empty(len(order_N)).bool()
        gradient_ND = torch.empty_like(hidden_ND)
        for first in range(0, len(distinct_P), CHUNK_POSITIONS):
            last = min(first + CHUNK_POSITIONS, len(distinct_P))
            teacher_PV = head.logits(teacher_TD[distinct_P[first:last] - 1])
            _, teacher_top1_P = ops.largest(teacher_PV)
            here = slice(*(int(torch.searchsorted(which_N, edge)) for edge in (first, last)))
            student_NV = head.logits(hidden_ND[order_N[here]])
            logits_NV = None if head.soft_cap is None else student_NV.clone()  # gradients replace the logits
            for part in range(0, len(student_NV), SLICE_ROWS):
                student = student_NV[part : part + SLICE_ROWS]
                rows = order_N[here.start + part :][: len(student)]
                teacher_rows = which_N[here.start + part :][: len(student)] - first
                chosen = student.gather(-1, teacher_top1_P[teacher_rows, None])[:, 0]
                agreed[rows] = chosen == ops.largest(student)[0]
                losses[rows], gradient = row_losses(student, teacher_PV[teacher_rows], targets.tokens_N[rows])
                if gradient is not student:
                    student.copy_(gradient)
            gradient_ND[order_N[here]] = head.backward(student_NV, logits_NV)
        with torch.enable_grad():
            loss = over_blocks(losses.requires_grad_())
        (shares_N,) = torch.autograd.grad(loss, losses)
        ctx.save_for_backward(gradient_ND * shares_N[:, None].to(gradient_ND.dtype))
        ctx.mark_non_differentiable(agreed)
        return loss.detach(), agreed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_agreed: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the hidden states; all other inputs are constants."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_loss, *(None,) * 6
