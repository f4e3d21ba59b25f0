"""The modules a decoder is made of: one layer, and the attention projections of one view in it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from orthrus.backends.linears import Linear
from orthrus.config import DecoderConfig

ViewName = Literal["ar", "diffusion"]


class View(nn.Module):
    """The attention projections of one view in one layer: fused QKV, output, q/k norms where the family has them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width, D, E = (config.heads + 2 * config.kv_heads) * config.head_dim, config.hidden_size, config.head_dim
        self.qkv = Linear(D, width, bias=config.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(config.heads * E, D, bias=config.o_bias, dtype=dtype, device=device)
        self.q_norm = scale(E, dtype, device) if config.qk_norm else None
        self.k_norm = scale(E, dtype, device) if config.qk_norm else None

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """The q and k norms, where the family has them."""
        return None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)


class Layer(nn.Module):
    """One decoder layer. Only `diffusion` is ever trained."""

    def __init__(self, config: DecoderConfig, diffusion: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = scale(D, dtype, device)
        self.mlp_norm = scale(D, dtype, device)
        self.ar = View(config, dtype, device)
        self.diffusion = View(config, dtype, device) if diffusion else None
        self.gate_up = Linear(D, 2 * inner, bias=config.mlp_bias, dtype=dtype, device=device)
        self.down = Linear(inner, D, bias=config.mlp_bias, dtype=dtype, device=device)
        self.drafting: tuple[Linear, Linear] | None = None
        """Cheaper forms of gate_up and down for passes that only draft, where there are any."""

    def mlp(self, *, drafting: bool) -> tuple[Linear, Linear]:
        """gate_up and down, for a pass that only drafts or for any other."""
        return self.drafting if drafting and self.drafting else (self.gate_up, self.down)

    def view(self, name: ViewName) -> View:
        """The projections of a view."""
        chosen = self.ar if name == "ar" else self.diffusion
        assert chosen is not None
        return chosen


def scale(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """The weights of a norm, empty and frozen."""
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
