"""The attention of many blocks over one packed text, forward and backward, exact and dense within each document."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.training.blocks import Blocks


class BlockAttention(torch.autograd.Function):
    """Attention of blocks over the text before their roots (frozen) and over themselves, document by document.

    The text and the block share one softmax, but no tensor of rows x rows exists, and frozen keys get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q_NHE: Tensor, k_NGE: Tensor, v_NGE: Tensor, text_k: Tensor, text_v: Tensor, blocks: Blocks
    ) -> Tensor:
        """q [N, H, E], k and v [N, G, E], text_k and text_v [T, G, E] to [N, H, E]."""
        out = torch.empty_like(q_NHE)
        kept = []
        for tokens, roots in blocks.documents():
            q, k, v = (_by_block(t, roots, blocks.block_size, text_k.shape[1]) for t in (q_NHE, k_NGE, v_NGE))
            past_k, past_v = (t[tokens].transpose(0, 1) for t in (text_k, text_v))
            weights = _weights(q, k, past_k, blocks.roots_S[roots] - tokens.start)
            past, own = weights.split((past_k.shape[1], blocks.block_size), dim=-1)
            mixed = (past.flatten(1, 2) @ past_v).view(q.shape) + own @ v
            rows = slice(roots.start * blocks.block_size, roots.stop * blocks.block_size)
            out[rows] = _by_row(mixed, q_NHE.shape[1])
            kept.append((tokens, roots, rows, weights))
        ctx.save_for_backward(q_NHE, k_NGE, v_NGE, text_k, text_v)
        ctx.kept, ctx.block_size = kept, blocks.block_size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients towards q, k and v of the blocks."""
        q_NHE, k_NGE, v_NGE, text_k, text_v = ctx.saved_tensors
        K, (_, G, E) = ctx.block_size, k_NGE.shape
        grads = [torch.empty_like(t) for t in (q_NHE, k_NGE, v_NGE)]
        for tokens, roots, rows, weights in ctx.kept:
            q, k, v, grad = (_by_block(t, roots, K, G) for t in (q_NHE, k_NGE, v_NGE, grad_NHE))
            past_k, past_v = (t[tokens].transpose(0, 1) for t in (text_k, text_v))
            grad_past = (grad.flatten(1, 2) @ past_v.transpose(1, 2)).unflatten(1, grad.shape[1:3])
            grad_weights = torch.cat((grad_past, grad @ v.transpose(-1, -2)), dim=-1)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype) * E**-0.5
            past, own = grad_scores.split((past_k.shape[1], K), dim=-1)
            grad_q = (past.flatten(1, 2) @ past_k).view(q.shape) + own @ k
            own_weights = weights[..., -K:]
            found = (grad_q, own.transpose(-1, -2) @ q, own_weights.transpose(-1, -2) @ grad)
            for target, value in zip(grads, found, strict=True):
                target[rows] = _by_row(value, target.shape[1])
        return (*grads, None, None, None)


def _weights(q: Tensor, k: Tensor, past_k: Tensor, roots_S: Tensor) -> Tensor:
    """Softmax weights [G, S, K * H/G, T + K] of the rows of each block: the text before its root, then the block."""
    scale = q.shape[-1] ** -0.5
    past = (q.flatten(1, 2) @ past_k.transpose(1, 2)).unflatten(1, q.shape[1:3])
    scores = torch.cat((past, q @ k.transpose(-1, -2)), dim=-1).mul_(scale)
    unseen_ST = torch.arange(past_k.shape[1]) >= roots_S[:, None]
    scores[..., : past_k.shape[1]].masked_fill_(unseen_ST[None, :, None], float("-inf"))
    return scores.softmax(-1)


def _by_block(rows_NHE: Tensor, roots: slice, block_size: int, groups: int) -> Tensor:
    """The rows of some blocks, [N, H, E], as [G, S, K * H/G, E]."""
    part = rows_NHE[roots.start * block_size : roots.stop * block_size]
    return part.unflatten(1, (groups, -1)).transpose(0, 1).unflatten(1, (-1, block_size)).flatten(2, 3)


def _by_row(blocks_GSRE: Tensor, heads: int) -> Tensor:
    """The inverse: [G, S, K * H/G, E] as [N, H, E]."""
    G, E = len(blocks_GSRE), blocks_GSRE.shape[-1]
    return blocks_GSRE.view(G, -1, heads // G, E).transpose(0, 1).flatten(1, 2)
