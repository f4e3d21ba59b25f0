"""The loss over the vocabulary and its gradient, in chunks: no tensor of shape rows x vocabulary is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.model.decoder import Decoder
from orthrus.training.ops import Ops

CHUNK_BYTES = 64 << 20
"""The logits of a chunk of rows: enough rows for fast GEMMs."""
SLICE_ROWS = 16
"""Student rows per call of the objective on a CPU: few enough that their logits stay in its caches."""


class Head(NamedTuple):
    """The frozen head [V, D], and the soft cap and the scale of its logits (see `DecoderConfig`). weight_DV: the same
    transposed in memory, with which GEMMs on a CPU give logits in half the time.

    With a draft vocabulary V counts its tokens alone. token_ids_V: these. places: where each token of the model is
    among them, -1 for none.
    """

    weight_VD: Tensor
    soft_cap: float | None = None
    weight_DV: Tensor | None = None
    scale: float = 1.0
    token_ids_V: Tensor | None = None
    places: Tensor | None = None

    @staticmethod
    def of(decoder: Decoder, *, transposed: bool = False) -> Head:
        """The head of a decoder that drafts. `transposed` needs its memory once more."""
        weight_VD, config, tokens_V = decoder.drafting_head().weight, decoder.config, decoder.draft_tokens
        weight_DV = weight_VD.T.contiguous() if transposed else None
        places = None
        if tokens_V is not None:
            places = tokens_V.new_full((config.vocab_size,), -1)
            places[tokens_V] = torch.arange(len(tokens_V), device=tokens_V.device)
        return Head(weight_VD, config.logit_soft_cap, weight_DV, config.logit_scale, tokens_V, places)

    def places_of(self, tokens: Tensor) -> Tensor:
        """The places of tokens in the head; -1 for those that are not drafted."""
        return tokens if self.places is None else self.places[tokens]

    def tokens_at(self, places: Tensor) -> Tensor:
        """The tokens at these places."""
        return places if self.token_ids_V is None else self.token_ids_V[places]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V]."""
        return self.capped(hidden_ND @ (self.weight_VD.T if self.weight_DV is None else self.weight_DV))

    def capped(self, logits: Tensor) -> Tensor:
        """The products of hidden states and weights, as logits."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.soft_cap is None else torch.tanh(scaled / self.soft_cap) * self.soft_cap

    def backward(self, grad_NV: Tensor, logits_NV: Tensor | None) -> Tensor:
        """The gradient with respect to the hidden states [N, D]; a soft cap needs the logits."""
        if self.soft_cap is not None and logits_NV is not None:
            grad_NV = grad_NV * (1 - (logits_NV / self.soft_cap) ** 2)
        return grad_NV @ self.weight_VD if self.scale == 1.0 else grad_NV @ self.weight_VD * self.scale


class Logits(NamedTuple):
    """The logits of a chunk of rows: which rows they are [N], those of the diffusion view [N, V], those of the AR view
    at the distinct targets of the chunk [P, V], and which of these targets each row has [N]."""

    rows_N: Tensor
    student_NV: Tensor
    teacher_PV: Tensor
    which_N: Tensor


def logits_in_chunks(head: Head, hidden_ND: Tensor, teacher_TD: Tensor, positions_N: Tensor) -> Iterator[Logits]:
    """The logits of all rows, given the positions of their targets in the text, by which they are sorted: rows with one
    target share a row of the AR view."""
    size = head.weight_VD.shape[0] * head.weight_VD.element_size()
    for rows_N in positions_N.argsort(stable=True).split(max(SLICE_ROWS, CHUNK_BYTES // size)):
        positions_P, which_N = positions_N[rows_N].unique_consecutive(return_inverse=True)
        yield Logits(rows_N, head.logits(hidden_ND[rows_N]), head.logits(teacher_TD[positions_P - 1]), which_N)


class Targets(NamedTuple):
    """The targets of the rows: their positions in the text [N], and the places of the tokens there in the head [N]."""

    positions_N: Tensor
    places_N: Tensor


class Rules(NamedTuple):
    """How logits become a loss: `rows` maps those of some rows of both views, and the places of their targets, to
    losses and gradients; `over_blocks` the losses of all rows to one. `observe` sees every chunk of logits."""

    rows: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    over_blocks: Callable[[Tensor], Tensor]
    observe: Callable[[Logits], None] | None = None


class VocabularyLoss(torch.autograd.Function):
    """The loss of all rows, and its gradient with respect to their hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, teacher_TD: Tensor, head: Head, targets: Targets, rules: Rules, ops: Ops
    ) -> tuple[Tensor, Tensor]:
        """Loss, and which rows agree with the teacher."""
        losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        agreed_N = torch.empty(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device)
        gradient_ND = torch.empty_like(hidden_ND)
        for chunk in logits_in_chunks(head, hidden_ND, teacher_TD, targets.positions_N):
            if rules.observe is not None:
                rules.observe(chunk)
            _, chosen_P = ops.largest(chunk.teacher_PV)
            logits_NV = None if head.soft_cap is None else chunk.student_NV.clone()  # gradients replace the logits
            size = SLICE_ROWS if hidden_ND.device.type == "cpu" else len(chunk.rows_N)
            slices = (part.split(size) for part in (chunk.student_NV, chunk.rows_N, chunk.which_N))
            for student_NV, rows_N, which_N in zip(*slices, strict=True):
                chosen_N = student_NV.gather(-1, chosen_P[which_N, None])[:, 0]
                places_N = targets.places_N[rows_N]
                agreed_N[rows_N] = (chosen_N == ops.largest(student_NV)[0]) & (places_N >= 0)
                losses_N[rows_N], gradient_NV = rules.rows(student_NV, chunk.teacher_PV[which_N], places_N.clamp(min=0))
                if gradient_NV is not student_NV:
                    student_NV.copy_(gradient_NV)
            gradient_ND[chunk.rows_N] = head.backward(chunk.student_NV, logits_NV)
        with torch.enable_grad():
            loss = rules.over_blocks(losses_N.requires_grad_())
        (shares_N,) = torch.autograd.grad(loss, losses_N)
        ctx.save_for_backward(gradient_ND * shares_N[:, None].to(gradient_ND.dtype))
        ctx.mark_non_differentiable(agreed_N)
        return loss.detach(), agreed_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_agreed: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the hidden states; all other inputs are constants."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_loss, *(None,) * 5
