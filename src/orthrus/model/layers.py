"""The modules of a decoder: the linear map, the attention projections of one view, and one decoder layer.

Decoding's eager executor and training run the same layer; they differ in the attention they pass to it and in the
operations between the linear maps (`LayerOps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.batch import ViewName
from orthrus.config import DecoderConfig
from orthrus.quantization import Quantized

Attention = Callable[[Tensor], Tensor]
"""From normed rows [N, D] to the residual update [N, D]: projections, attention over whatever the rows attend to, o."""


class Linear(nn.Module):
    """y = x W^T + b, in the dtype of x: the form in which weights are trained and saved. Shapes: N rows, I inputs, O
    outputs."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, dtype=dtype, device=device), requires_grad=False) if bias else None
        )
        self.group_quantized: Quantized | None = None
        """The weights as their file holds them, where it holds them in fewer bits."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight.device

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]. fp32 master weights are cast to the dtype of x."""
        bias = self.bias
        return F.linear(x_NI, self.weight.to(x_NI.dtype), None if bias is None else bias.to(x_NI.dtype))


class LayerOps(Protocol):
    """The operations of a layer between its linear maps."""

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """hidden + delta (hidden alone where delta is None), and its root-mean-square norm over D."""
        ...

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        """silu(first half) * second half of the last dimension."""
        ...


class View(nn.Module):
    """The attention projections of one view in one layer: fused QKV, output, q/k norms where the family has them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width, D, E = (config.heads + 2 * config.kv_heads) * config.head_dim, config.hidden_size, config.head_dim
        self.qkv = Linear(D, width, bias=config.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(config.heads * E, D, bias=config.o_bias, dtype=dtype, device=device)
        self.q_norm = norm_weight(E, dtype, device) if config.qk_norm else None
        self.k_norm = norm_weight(E, dtype, device) if config.qk_norm else None

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """The q and k norms, where the family has them."""
        return None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)


class DecoderLayer(nn.Module):
    """One decoder layer with both views. Only `diffusion` is ever trained."""

    def __init__(self, config: DecoderConfig, diffusion: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.eps = config.norm_eps
        self.attention_norm = norm_weight(D, dtype, device)
        self.mlp_norm = norm_weight(D, dtype, device)
        self.ar = View(config, dtype, device)
        self.diffusion = View(config, dtype, device) if diffusion else None
        self.gate_up = Linear(D, 2 * inner, bias=config.mlp_bias, dtype=dtype, device=device)
        self.down = Linear(inner, D, bias=config.mlp_bias, dtype=dtype, device=device)

    def forward(
        self,
        hidden_ND: Tensor,
        delta_ND: Tensor | None,
        attention: Attention,
        ops: LayerOps,
        mlp: tuple[nn.Module, nn.Module] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pre-norm attention and MLP. Returns the residual stream and the update that the next norm adds to it.

        `mlp` replaces gate_up and down (low-precision copies for passes that only draft).
        """
        gate_up, down = mlp or (self.gate_up, self.down)
        hidden_ND, normed_ND = ops.add_norm(hidden_ND, delta_ND, self.attention_norm, self.eps)
        hidden_ND, normed_ND = ops.add_norm(hidden_ND, attention(normed_ND), self.mlp_norm, self.eps)
        return hidden_ND, down(ops.gate(gate_up(normed_ND)))

    def view(self, name: ViewName) -> View:
        """The projections of a view."""
        view = self.ar if name == "ar" else self.diffusion
        assert view is not None
        return view


def norm_weight(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """The weights of a norm, empty and frozen."""
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
