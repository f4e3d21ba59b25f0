"""The loss over the vocabulary, and its gradient, in chunks: no tensor of rows x vocabulary is ever stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_POSITIONS = 64
"""Distinct targets whose teacher logits exist at once; up to K rows share each."""
SLICE_ROWS = 16
"""Rows whose vocabulary is worked on at once: few enough to stay in the caches."""


class VocabularyLoss(torch.autograd.Function):
    """The mean objective over rows by their weights, and its gradient towards their hidden states, without storing
    rows x vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        teacher_TD: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        tokens_T: Tensor,
        objective: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Rows that share a target go together, so that the teacher speaks once for each."""
        order_N = targets_N.argsort(stable=True)
        distinct_P, which_N = targets_N[order_N].unique_consecutive(return_inverse=True)
        losses, agreed = hidden_ND.new_empty(len(order_N), dtype=torch.float32), order_N.new_empty(len(order_N)).bool()
        gradient_ND = torch.empty_like(hidden_ND)
        for first in range(0, len(distinct_P), CHUNK_POSITIONS):
            last = min(first + CHUNK_POSITIONS, len(distinct_P))
            teacher_PV = F.linear(teacher_TD[distinct_P[first:last] - 1], head_VD)
            said_P = teacher_PV.argmax(-1)
            here = slice(*(int(torch.searchsorted(which_N, edge)) for edge in (first, last)))
            student_NV = F.linear(hidden_ND[order_N[here]], head_VD)
            for part in range(0, len(student_NV), SLICE_ROWS):
                student = student_NV[part : part + SLICE_ROWS]
                rows = order_N[here.start + part :][: len(student)]
                of_teacher = which_N[here.start + part :][: len(student)] - first
                agreed[rows] = student.gather(-1, said_P[of_teacher, None])[:, 0] == student.amax(-1)
                losses[rows], gradient = objective(student, teacher_PV[of_teacher], tokens_T[targets_N[rows]])
                if gradient is not student:
                    student.copy_(gradient)
            gradient_ND[order_N[here]] = student_NV @ head_VD
        shares_N = weights_N / weights_N.sum()
        ctx.save_for_backward(gradient_ND * shares_N[:, None].to(gradient_ND.dtype))
        ctx.mark_non_differentiable(agreed)
        return losses @ shares_N, agreed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_agreed: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient towards the hidden states alone."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_loss, *(None,) * 6
