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
from orthrus.decoder_config import DecoderConfig, LayerConfig
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
        self.quantizable = True
        """Whether `int8` may quantise it."""

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


class MLP(nn.Module):
    """down(activation(gate) * up), with gate and up fused."""

    def __init__(self, config: DecoderConfig, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, bias = config.hidden_size, config.mlp_bias
        self.activation = config.activation
        self.gate_up = Linear(D, 2 * size, bias=bias, dtype=dtype, device=device)
        self.down = Linear(size, D, bias=bias, dtype=dtype, device=device)

    def forward(self, x_ND: Tensor, ops: LayerOps, copies: tuple[nn.Module, nn.Module] | None = None) -> Tensor:
        """y [N, D]. `copies` replaces gate_up and down (low-precision copies for passes that only draft)."""
        gate_up, down = copies or (self.gate_up, self.down)
        y_ND: Tensor = down(ops.gate(gate_up(x_ND), self.activation))
        return y_ND


class Experts(nn.Module):
    """A mixture of experts: each row runs through the MLPs that its router ranks highest, A of them.

    No bit of a row depends on the other rows: each expert runs the rows that chose it through its own linear maps,
    which keep their bits under their row rules, and the results of a row are added in ascending order of its experts.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        assert config.experts is not None
        self.config = config.experts
        self.router = Linear(config.hidden_size, self.config.count, bias=False, dtype=dtype, device=device)
        self.router.quantizable = False
        size = self.config.intermediate_size
        self.experts = nn.ModuleList(MLP(config, size, dtype, device) for _ in range(self.config.count))

    def forward(self, x_ND: Tensor, ops: LayerOps, copies: None = None) -> Tensor:
        """y [N, D]. There are no low-precision copies of experts."""
        del copies
        weights_NA, chosen_NA = self.route(x_ND)
        order = chosen_NA.flatten().argsort(stable=True)
        counts = chosen_NA.flatten().bincount(minlength=self.config.count).tolist()
        rows = (order // self.config.active).split(counts)
        results = [expert(x_ND[own], ops) for expert, own in zip(self.experts, rows, strict=True) if len(own)]
        y_NAD = torch.cat(results)[order.argsort()].unflatten(0, (-1, self.config.active)) * weights_NA[..., None]
        first, *others = y_NAD.unbind(1)
        return sum(others, start=first)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [N, A] of the chosen experts of each row, and which they are [N, A], in ascending order."""
        weights_NA, chosen_NA = self.router(x_ND).float().softmax(-1).topk(self.config.active)
        if self.config.normalised:
            weights_NA = weights_NA / weights_NA.sum(-1, keepdim=True)
        chosen_NA, places_NA = chosen_NA.sort(-1)
        return weights_NA.gather(-1, places_NA).to(x_ND.dtype), chosen_NA


class DecoderLayer(nn.Module):
    """One decoder layer with both views. Only `diffusion` is ever trained."""

    def __init__(
        self, config: DecoderConfig, kind: LayerConfig, diffusion: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        D = config.hidden_size
        self.kind, self.eps, self.offset = kind, config.norm_eps, config.norm_offset
        self.attention_norm = norm_weight(D, dtype, device)
        self.mlp_norm = norm_weight(D, dtype, device)
        self.post_attention_norm = norm_weight(D, dtype, device) if config.post_norms else None
        self.post_mlp_norm = norm_weight(D, dtype, device) if config.post_norms else None
        self.ar = View(config, dtype, device)
        self.diffusion = View(config, dtype, device) if diffusion else None
        self.mlp: MLP | Experts = (
            Experts(config, dtype, device) if kind.experts else MLP(config, config.intermediate_size, dtype, device)
        )

    def forward(
        self,
        hidden_ND: Tensor,
        delta_ND: Tensor | None,
        attention: Attention,
        ops: LayerOps,
        copies: tuple[nn.Module, nn.Module] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention and MLP, each after a norm. Returns the residual stream and the update that the next norm adds to
        it.

        copies: see `MLP.forward`.
        """
        hidden_ND, normed_ND = ops.add_norm(hidden_ND, delta_ND, self.attention_norm, self.eps, self.offset)
        update_ND = attention(normed_ND)
        if self.post_attention_norm is not None:
            update_ND = ops.norm(update_ND, self.post_attention_norm, self.eps, self.offset)
        hidden_ND, normed_ND = ops.add_norm(hidden_ND, update_ND, self.mlp_norm, self.eps, self.offset)
        update_ND = self.mlp(normed_ND, ops, copies)
        if self.post_mlp_norm is not None:
            update_ND = ops.norm(update_ND, self.post_mlp_norm, self.eps, self.offset)
        return hidden_ND, update_ND

    def view(self, name: ViewName) -> View:
        """The projections of a view."""
        view = self.ar if name == "ar" else self.diffusion
        assert view is not None
        return view


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap) (x where cap is None), elementwise.

    In float64: the vector loop of torch's tanh and its scalar tail round differently, and where the tail lies depends
    on the other rows. After rounding to fp32 the two are equal.
    """
    return x if cap is None else (torch.tanh(x.double() / cap) * cap).to(x.dtype)


def norm_weight(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """The weights of a norm, empty and frozen."""
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
