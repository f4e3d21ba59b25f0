"""Norms over the hidden size, and over the heads of q and k.

Root-mean-square norms of rows run on the kernels of a backend. All others run on torch's operations, on every device.

Shapes: N rows, D hidden, H heads, E head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.decoder_config import DecoderConfig
from orthrus.model.ops import LayerOps


class Norm(nn.Module):
    """A norm over D with frozen weights, which are empty until a checkpoint fills them: x / rms(x) * (weight + offset).
    A `centred` one takes the mean off x first, and may add a bias (LayerNorm)."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps, self.offset, self.centred = config.norm_eps, config.norm_offset, config.norm_centred
        self.weight = frozen_vector(config.hidden_size, dtype, device)
        self.bias = frozen_vector(config.hidden_size, dtype, device) if config.norm_bias else None

    def forward(self, x_ND: Tensor, ops: LayerOps) -> Tensor:
        """The norm of each row [N, D]."""
        if self.centred:
            return self._layer_norm(x_ND)
        return ops.norm(x_ND, self.weight, self.eps, self.offset)

    def of_sum(self, hidden_ND: Tensor, delta_ND: Tensor | None, ops: LayerOps) -> tuple[Tensor, Tensor]:
        """hidden + delta (hidden alone where delta is None), and the norm of the sum."""
        if self.centred:
            hidden_ND = hidden_ND if delta_ND is None else hidden_ND + delta_ND
            return hidden_ND, self._layer_norm(hidden_ND)
        return ops.add_norm(hidden_ND, delta_ND, self.weight, self.eps, self.offset)

    def _layer_norm(self, x_ND: Tensor) -> Tensor:
        """In fp32, as `layer_norm` computes it for rows of any type."""
        bias_D = None if self.bias is None else self.bias.float()
        return F.layer_norm(x_ND.float(), x_ND.shape[-1:], self.weight.float() + self.offset, bias_D, self.eps).to(
            x_ND.dtype
        )


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
    """x / rms(x) * (weight + offset) over D, differentiable in x and weight. With an offset in fp32: the sum would lose
    bits of a weight near zero."""
    if not offset:
        return F.rms_norm(x_ND, x_ND.shape[-1:], weight_D.to(x_ND.dtype), eps)
    return F.rms_norm(x_ND.float(), x_ND.shape[-1:], weight_D.float() + offset, eps).to(x_ND.dtype)


def norm_heads(x_NF: Tensor, weight_F: Tensor, config: DecoderConfig) -> Tensor:
    """The norms of q or k [N, H E] of `config.qk_norm` "row" (one over all heads) and "heads" (each head its own)."""
    if config.qk_norm == "row":
        return rms_norm(x_NF, weight_F, config.norm_eps, config.norm_offset)
    x_NHE, E = x_NF.unflatten(-1, (-1, config.head_dim)).float(), config.head_dim
    normed_NHE = (
        F.layer_norm(x_NHE, (E,), eps=config.norm_eps)
        if config.norm_centred
        else F.rms_norm(x_NHE, (E,), eps=config.norm_eps)
    )
    return (normed_NHE.flatten(-2) * (weight_F.float() + config.norm_offset)).to(x_NF.dtype)


def frozen_vector(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """One weight for each dimension or head, empty and frozen."""
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
