"""Attention of a training step: of a text to itself, and of many blocks to one packed text, forward and backward.

Exact, and dense within each document.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.training.blocks import Blocks
from orthrus.training.ops import Ops


@dataclass(frozen=True)
class Scores:
    """How a layer turns products of q and k into scores: times `scale`, below a soft cap, within a sliding window,
    beside the sinks of the heads [H] (see `DecoderConfig` and `LayerConfig`; None: 1 / sqrt(E), and none)."""

    scale: float | None = None
    soft_cap: float | None = None
    window: int | None = None
    sinks_H: Tensor | None = None

    def scaled(self, size: int) -> float:
        """The scale of heads of this size."""
        return size**-0.5 if self.scale is None else self.scale

    def capped(self, products: Tensor) -> Tensor:
        """Scaled products below the soft cap, if there is one."""
        return products if self.soft_cap is None else torch.tanh(products / self.soft_cap) * self.soft_cap


def causal_attention(q_HTE: Tensor, k_GTE: Tensor, v_GTE: Tensor, how: Scores) -> Tensor:
    """Attention of a whole text to itself [H, T, E], without gradients."""
    attend = partial(F.scaled_dot_product_attention, q_HTE[None], k_GTE[None], v_GTE[None], enable_gqa=True)
    if how.window is None and how.soft_cap is None and how.sinks_H is None:
        return attend(is_causal=True, scale=how.scale)[0]
    slots_T = torch.arange(q_HTE.shape[1], device=q_HTE.device)
    distance_TT = slots_T[:, None] - slots_T
    visible_TT = (distance_TT >= 0) & (distance_TT < (how.window or len(slots_T)))
    if how.soft_cap is None and how.sinks_H is None:
        return attend(attn_mask=visible_TT, scale=how.scale)[0]
    products = q_HTE.unflatten(0, (len(k_GTE), -1)) @ k_GTE.transpose(1, 2)[:, None] * how.scaled(q_HTE.shape[-1])
    scores = how.capped(products).masked_fill(~visible_TT, float("-inf"))
    if how.sinks_H is not None:
        sinks_GHT1 = how.sinks_H.to(scores.dtype).view(*scores.shape[:2], 1, 1).expand(-1, -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks_GHT1), dim=-1)
    return (scores.softmax(-1)[..., : len(slots_T)] @ v_GTE[:, None]).flatten(0, 1)


class BlockAttention(torch.autograd.Function):
    """Attention of each block over the text before its root (frozen) and over its own rows, one document at a time.

    One softmax covers text and block, no tensor of shape rows x rows is allocated, and frozen keys get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_NHE: Tensor,
        k_NGE: Tensor,
        v_NGE: Tensor,
        text: tuple[Tensor, Tensor],
        blocks: Blocks,
        ops: Ops,
        how: Scores,
    ) -> Tensor:
        """The output [N, H, E] for q [N, H, E], k and v [N, G, E], and `text`, its keys and values [T, G, E]."""
        K, G = blocks.block_size, k_NGE.shape[1]
        out, saved = torch.empty_like(q_NHE), []
        for tokens, roots in blocks.documents():
            q, k, v = (_by_block(t, roots, K, G) for t in (q_NHE, k_NGE, v_NGE))
            text_k, text_v = (t[tokens].transpose(0, 1) for t in text)
            scores, scale = _scores(q, k, text_k, how)
            sinks_GR = None if how.sinks_H is None else how.sinks_H.view(G, -1).repeat(1, K)
            weights = ops.block_softmax(*scores, blocks.roots_S[roots] - tokens.start, scale, how.window, sinks_GR)
            out[_rows(roots, K)] = _by_row(_over_text(weights[0], text_v) + weights[1] @ v, q_NHE.shape[1])
            saved.append((tokens, roots, weights))
        ctx.save_for_backward(q_NHE, k_NGE, v_NGE, *text)
        ctx.saved, ctx.block_size, ctx.ops, ctx.how = saved, K, ops, how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to q, k and v of the blocks."""
        q_NHE, k_NGE, v_NGE, *text = ctx.saved_tensors
        K, (_, G, E), how = ctx.block_size, k_NGE.shape, ctx.how
        grads = [torch.empty_like(t) for t in (q_NHE, k_NGE, v_NGE)]
        for tokens, roots, weights in ctx.saved:
            q, k, v, grad = (_by_block(t, roots, K, G) for t in (q_NHE, k_NGE, v_NGE, grad_NHE))
            text_k, text_v = (t[tokens].transpose(0, 1) for t in text)
            weight_grads = _over_text(grad, text_v.transpose(1, 2)), grad @ v.transpose(-1, -2)
            past, own = ctx.ops.block_softmax_backward(weights, weight_grads, how.scaled(E))
            if how.soft_cap is not None:
                slopes = [1 - (score / how.soft_cap) ** 2 for score in _scores(q, k, text_k, how)[0]]
                past, own = past * slopes[0], own * slopes[1]
            qkv_grads = (
                _over_text(past, text_k) + own @ k,
                own.transpose(-1, -2) @ q,
                weights[1].transpose(-1, -2) @ grad,
            )
            for target, value in zip(grads, qkv_grads, strict=True):
                target[_rows(roots, K)] = _by_row(value, target.shape[1])
        return (*grads, None, None, None, None)


def _scores(q: Tensor, k: Tensor, text_k: Tensor, how: Scores) -> tuple[tuple[Tensor, Tensor], float]:
    """Scores of the text and of the block, and the factor they still need: the scale, or 1 where a cap took it in."""
    products, scale = (_over_text(q, text_k.transpose(1, 2)), q @ k.transpose(-1, -2)), how.scaled(q.shape[-1])
    if how.soft_cap is None:
        return products, scale
    return (how.capped(products[0] * scale), how.capped(products[1] * scale)), 1.0


def _over_text(rows_GSRX: Tensor, text_GXY: Tensor) -> Tensor:
    """The product of the rows of all blocks with keys or values of the text: [G, S, R, X] by [G, X, Y]."""
    return (rows_GSRX.flatten(1, 2) @ text_GXY).unflatten(1, rows_GSRX.shape[1:3])


def _rows(roots: slice, block_size: int) -> slice:
    return slice(roots.start * block_size, roots.stop * block_size)


def _by_block(rows_NHE: Tensor, roots: slice, block_size: int, groups: int) -> Tensor:
    """The rows of some blocks, [N, H, E], as [G, S, K * H/G, E]."""
    return (
        rows_NHE[_rows(roots, block_size)]
        .unflatten(1, (groups, -1))
        .transpose(0, 1)
        .unflatten(1, (-1, block_size))
        .flatten(2, 3)
    )


def _by_row(blocks_GSRE: Tensor, heads: int) -> Tensor:
    """The inverse: [G, S, K * H/G, E] as [N, H, E]."""
    G, E = len(blocks_GSRE), blocks_GSRE.shape[-1]
    return blocks_GSRE.view(G, -1, heads // G, E).transpose(0, 1).flatten(1, 2)
