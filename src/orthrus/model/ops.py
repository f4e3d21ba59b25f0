"""The operations of a layer between its linear maps: what executors and training provide, and what torch runs for all.

Shapes: N rows, D hidden, F features.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SWIGLU_SLOPE, SWIGLU_LIMIT = 1.702, 7.0
"""The constants of `clamped_swiglu`."""


class LayerOps(Protocol):
    """The operations of a layer between its linear maps. Norms multiply by weight + offset."""

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """The root-mean-square norm over D."""
        ...

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """hidden + delta (hidden alone where delta is None), and the norm of the sum."""
        ...

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """activation(first half) * second half of the last dimension."""
        ...


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap) (x where cap is None), elementwise.

    In float64: the vector loop of torch's tanh and its scalar tail round differently, and where the tail lies depends
    on the other rows. After rounding to fp32 the two are equal.
    """
    return x if cap is None else (torch.tanh(x.double() / cap) * cap).to(x.dtype)


def gate(gate_up_NF: Tensor, activation: str) -> Tensor:
    """activation(first half) * second half of the last dimension. `clamped_swiglu` is that of gpt-oss: both halves are
    clamped, and the second is shifted by one."""
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    if activation != "clamped_swiglu":
        return activate(gate_NF, activation) * up_NF
    gate_NF, up_NF = gate_NF.clamp(max=SWIGLU_LIMIT), up_NF.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return gate_NF * sigmoid(gate_NF * SWIGLU_SLOPE) * (up_NF + 1)


def sigmoid(x: Tensor) -> Tensor:
    """Elementwise, in float64: see `soft_cap`."""
    return torch.sigmoid(x.double()).to(x.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """An activation of one argument, elementwise. GELU in float64, SiLU on CPUs: see `soft_cap`. Raises ValueError for
    the others (`clamped_swiglu` has two halves: see `gate`)."""
    if activation == "relu2":
        return F.relu(x).square()
    if activation == "silu":
        return F.silu(x.double()).to(x.dtype) if x.device.type == "cpu" else F.silu(x)
    if activation != "gelu_tanh":
        raise ValueError(f"{activation!r} is no activation of one argument")
    return F.gelu(x.double(), approximate="tanh").to(x.dtype)
