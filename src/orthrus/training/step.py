"""One training step's loss and gradients: the diffusion view against the AR view of the same frozen backbone.

The frozen pass runs once over the text and gives every layer's keys and values and the teacher's hidden states. The
diffusion rows of all blocks then run together, each seeing AR keys strictly before its root and its own block
(arXiv 2605.12825, section 3). Only the view's own projections and norms have gradients; vocabulary rows exist in chunks
only.

Shapes: T tokens of the text, S roots, K block, N = S * K rows; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus.model.decoder import Decoder, Layer, View
from orthrus.model.kernels import Linear
from orthrus.model.rope import rotate
from orthrus.training.objectives import Objective

CHUNK_ROWS = 256


@dataclass(frozen=True)
class Blocks:
    """A text and the roots of its blocks: tokens [T], roots [S], K rows a block, of which the first are trained."""

    tokens_T: Tensor
    roots_S: Tensor
    block_size: int
    trained_rows: int

    def __post_init__(self) -> None:
        if len(self.roots_S) == 0:
            raise ValueError("a text without a single root cannot be trained on")
        if int(self.roots_S.max()) + self.trained_rows >= len(self.tokens_T):
            raise ValueError("a root's targets must lie inside the text")

    @property
    def positions(self) -> Tensor:
        """The position of every row [S, K]."""
        return self.roots_S[:, None] + torch.arange(self.block_size)

    @property
    def targets(self) -> Tensor:
        """The positions of the targets [S, trained rows]: row j predicts the token j + 1 places after the root."""
        return self.roots_S[:, None] + 1 + torch.arange(self.trained_rows)


@dataclass(frozen=True)
class Outcome:
    """The mean loss per trained row (nats), and agreement with the text per offset [M]."""

    loss: Tensor
    agreement_M: Tensor


def visible(blocks: Blocks) -> Tensor:
    """Which keys a row sees, [N, T + N] bool: text before its root, then the rows of its own block."""
    owners_N = torch.arange(len(blocks.roots_S)).repeat_interleave(blocks.block_size)
    before = torch.arange(len(blocks.tokens_T)) < blocks.roots_S[owners_N][:, None]
    return torch.cat((before, owners_N[:, None] == owners_N), dim=1)


def step(decoder: Decoder, blocks: Blocks, objective: Objective) -> Outcome:
    """Loss of an unprepared decoder, with gradients towards those of its parameters that require them."""
    assert decoder.diffusion is not None
    with torch.no_grad():
        teacher_TD, memory = _frozen_pass(decoder, blocks.tokens_T)
    hidden_ND = _diffusion_pass(decoder, blocks, memory)
    trained = hidden_ND.view(len(blocks.roots_S), blocks.block_size, -1)[:, : blocks.trained_rows].flatten(0, 1)
    targets_N = blocks.targets.flatten()
    teacher_ND = teacher_TD[targets_N - 1]
    head = decoder.head.weight
    loss, agreed_N = _VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        trained, teacher_ND, head, blocks.tokens_T[targets_N], objective
    )
    return Outcome(loss, agreed_N.view(len(blocks.roots_S), -1).float().mean(0))


def _frozen_pass(decoder: Decoder, tokens_T: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The AR view over the whole text: final normed hidden states [T, D], and K and V [T, G, E] of every layer."""
    config, memory = decoder.config, []
    rope = decoder.rope.rows(torch.arange(len(tokens_T)), len(tokens_T))
    hidden = decoder.embedding[tokens_T]
    for layer in decoder.stack:
        q, k, v = _project(decoder, layer.ar, _norm(hidden, layer.attention_norm, config.norm_eps), rope)
        memory.append((k, v))
        attention = F.scaled_dot_product_attention(*_heads_first(decoder, q, k, v), is_causal=True)
        hidden = hidden + layer.ar.o(attention[0].transpose(0, 1).flatten(1))
        hidden = hidden + _mlp(layer, hidden, config.norm_eps)
    return _norm(hidden, decoder.norm, config.norm_eps), memory


def _diffusion_pass(decoder: Decoder, blocks: Blocks, memory: list[tuple[Tensor, Tensor]]) -> Tensor:
    """All blocks through the diffusion view: final normed hidden states [N, D]."""
    assert decoder.diffusion is not None
    config = decoder.config
    ids_SK = torch.full(blocks.positions.shape, decoder.diffusion.mask_token_id)
    ids_SK[:, 0] = blocks.tokens_T[blocks.roots_S]
    positions_N = blocks.positions.flatten()
    rope = decoder.rope.rows(positions_N, int(positions_N.max()))
    bias = torch.zeros(()).masked_fill(~visible(blocks), float("-inf")).to(decoder.dtype)
    hidden = decoder.embedding[ids_SK.flatten()]
    for layer, (text_k, text_v) in zip(decoder.stack, memory, strict=True):
        view = layer.view("diffusion")
        q, k, v = _project(decoder, view, _norm(hidden, layer.attention_norm, config.norm_eps), rope)
        keys, values = torch.cat((text_k, k)), torch.cat((text_v, v))
        attention = F.scaled_dot_product_attention(*_heads_first(decoder, q, keys, values), attn_mask=bias)
        hidden = hidden + _linear(view.o, attention[0].transpose(0, 1).flatten(1))
        hidden = hidden + _mlp(layer, hidden, config.norm_eps)
    return _norm(hidden, decoder.norm, config.norm_eps)


def _project(
    decoder: Decoder, view: View, normed: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """q [N, H, E], k and v [N, G, E] of rows, normed and rotated."""
    config = decoder.config
    qkv = _linear(view.qkv, normed).view(len(normed), -1, config.head_dim)
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
    if view.norms is not None:
        q, k = (_norm(t, weight, config.norm_eps) for t, weight in zip((q, k), view.norms, strict=True))
    return rotate(q, *rope), rotate(k, *rope), v


def _heads_first(decoder: Decoder, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[1, H, rows, E] each, keys and values repeated for the query heads of their group."""
    repeats = decoder.config.heads // decoder.config.kv_heads
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def _linear(linear: Linear, x: Tensor) -> Tensor:
    """A linear map in the dtype of x, whatever the dtype its weights are kept in: fp32 masters, bf16 compute."""
    bias = linear.bias
    return F.linear(x, linear.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _mlp(layer: Layer, hidden: Tensor, eps: float) -> Tensor:
    gate, up = _linear(layer.gate_up, _norm(hidden, layer.mlp_norm, eps)).chunk(2, dim=-1)
    return _linear(layer.down, F.silu(gate) * up)


class _VocabularyLoss(torch.autograd.Function):
    """The mean objective over rows, and its gradient towards their hidden states, without storing rows x vocabulary."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_ND: Tensor,
        teacher_ND: Tensor,
        head_VD: Tensor,
        targets_N: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        losses, agreed, gradients = [], [], []
        for rows in torch.arange(len(hidden_ND)).split(CHUNK_ROWS):
            student_NV = F.linear(hidden_ND[rows], head_VD)
            teacher_NV = F.linear(teacher_ND[rows], head_VD)
            losses_N, gradient_NV = objective(student_NV, teacher_NV, targets_N[rows])
            losses.append(losses_N)
            agreed.append(student_NV.argmax(-1) == teacher_NV.argmax(-1))
            gradients.append(gradient_NV.to(head_VD.dtype) @ head_VD)
        gradient_ND = torch.cat(gradients) / len(hidden_ND)
        ctx.save_for_backward(gradient_ND)
        agreed_N = torch.cat(agreed)
        ctx.mark_non_differentiable(agreed_N)
        return torch.cat(losses).mean(), agreed_N

    @staticmethod
    def backward(ctx, grad_loss: Tensor, _grad_agreed: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        """The gradient towards the hidden states alone."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_loss, None, None, None, None
