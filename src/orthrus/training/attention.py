"""Attention of many blocks over one packed text, forward and backward: exact, and dense within each document."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.training.blocks import Blocks
from orthrus.training.ops import Ops


class BlockAttention(torch.autograd.Function):
    """Attention of each block over the text before its root (frozen) and over its own rows, one document at a time.

    One softmax covers text and block, no tensor of shape rows x rows is allocated, and frozen keys get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q_NHE: Tensor, k_NGE: Tensor, v_NGE: Tensor, text: tuple[Tensor, Tensor], blocks: Blocks, ops: Ops
    ) -> Tensor:
        """The output [N, H, E] for q [N, H, E], k and v [N, G, E], and `text`, its keys and values [T, G, E]."""
        K, (_, G, E) = blocks.block_size, k_NGE.shape
        out, saved = torch.empty_like(q_NHE), []
        for tokens, roots in blocks.documents():
            q, k, v = (_by_block(t, roots, K, G) for t in (q_NHE, k_NGE, v_NGE))
            text_k, text_v = (t[tokens].transpose(0, 1) for t in text)
            scores = _over_text(q, text_k.transpose(1, 2)), q @ k.transpose(-1, -2)
            weights = ops.block_softmax(*scores, blocks.roots_S[roots] - tokens.start, E**-0.5)
            out[_rows(roots, K)] = _by_row(_over_text(weights[0], text_v) + weights[1] @ v, q_NHE.shape[1])
            saved.append((tokens, roots, weights))
        ctx.save_for_backward(q_NHE, k_NGE, v_NGE, *text)
        ctx.saved, ctx.block_size, ctx.ops = saved, K, ops
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to q, k and v of the blocks."""
        q_NHE, k_NGE, v_NGE, *text = ctx.saved_tensors
        K, (_, G, E) = ctx.block_size, k_NGE.shape
        grads = [torch.empty_like(t) for t in (q_NHE, k_NGE, v_NGE)]
        for tokens, roots, weights in ctx.saved:
            q, k, v, grad = (_by_block(t, roots, K, G) for t in (q_NHE, k_NGE, v_NGE, grad_NHE))
            text_k, text_v = (t[tokens].transpose(0, 1) for t in text)
            weight_grads = _over_text(grad, text_v.transpose(1, 2)), grad @ v.transpose(-1, -2)
            past, own = ctx.ops.block_softmax_backward(weights, weight_grads, E**-0.5)
            qkv_grads = (
                _over_text(past, text_k) + own @ k,
                own.transpose(-1, -2) @ q,
                weights[1].transpose(-1, -2) @ grad,
            )
            for target, value in zip(grads, qkv_grads, strict=True):
                target[_rows(roots, K)] = _by_row(value, target.shape[1])
        return (*grads, None, None, None)


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
