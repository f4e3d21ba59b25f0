"""The modules of a decoder: the attention projections of one view, and one decoder layer.

Decoding's eager executor and training run the same layer; they differ in the attention they pass to it and in the
operations between the linear maps (`LayerOps`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from orthrus.batch import ViewName
from orthrus.decoder_config import DecoderConfig, LayerConfig
from orthrus.model.linear import Linear
from orthrus.model.mlp import MLP, Experts
from orthrus.model.norms import Norm, frozen_vector, norm_heads
from orthrus.model.ops import LayerOps

Attention = Callable[[Tensor], Tensor]
"""From normed rows [N, D] to the residual update [N, D]: projections, attention over whatever the rows attend to, o."""


class View(nn.Module):
    """The attention projections of one view in one layer: fused QKV, output, q/k norms where the family has them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        H, G, D, E = config.heads, config.kv_heads, config.hidden_size, config.head_dim
        self.config = config
        self.qkv = Linear(D, (H + 2 * G) * E, bias=config.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(H * E, D, bias=config.o_bias, dtype=dtype, device=device)
        q_size, k_size = (E, E) if config.qk_norm == "head" else (H * E, G * E)
        self.q_norm = frozen_vector(q_size, dtype, device) if config.qk_norm else None
        self.k_norm = frozen_vector(k_size, dtype, device) if config.qk_norm else None

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """The q and k norms that all heads share, which kernels apply with the rotary embeddings."""
        if self.config.qk_norm != "head":
            return None
        assert self.q_norm is not None and self.k_norm is not None
        return self.q_norm, self.k_norm

    def project(self, x_ND: Tensor) -> Tensor:
        """q, k and v of each row [N, (H + 2G) E]. Norms of q and k that heads do not share are applied."""
        qkv_NF: Tensor = self.qkv(x_ND)
        if self.config.qk_norm in (None, "head"):
            return qkv_NF
        assert self.q_norm is not None and self.k_norm is not None
        q, k, v = qkv_NF.split((len(self.q_norm), len(self.k_norm), len(self.k_norm)), dim=-1)
        return torch.cat((norm_heads(q, self.q_norm, self.config), norm_heads(k, self.k_norm, self.config), v), dim=-1)


class DecoderLayer(nn.Module):
    """One decoder layer with both views, which share its attention sinks [H]. Only `diffusion` is ever trained."""

    def __init__(
        self, config: DecoderConfig, kind: LayerConfig, diffusion: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()

        def norm(present: bool) -> Norm | None:
            return Norm(config, dtype, device) if present else None

        self.kind, self.parallel, self.residual_scale = kind, config.parallel, config.residual_scale
        self.attention_norm = norm(config.pre_norms)
        self.mlp_norm = norm(config.pre_norms and not config.parallel)
        self.post_attention_norm = norm(config.post_norms)
        self.post_mlp_norm = norm(config.post_norms)
        self.sinks = frozen_vector(config.heads, dtype, device) if config.attention_sinks else None
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
        """Attention and MLP, one after the other or both on the same rows. Returns the residual stream and the update
        that the next norm adds to it.

        copies: see `MLP.forward`.
        """
        hidden_ND, normed_ND = _sum_and_norm(hidden_ND, delta_ND, self.attention_norm, ops)
        update_ND = self._update(attention(normed_ND), self.post_attention_norm, ops)
        if self.parallel:
            hidden_ND = hidden_ND + update_ND
        else:
            hidden_ND, normed_ND = _sum_and_norm(hidden_ND, update_ND, self.mlp_norm, ops)
        return hidden_ND, self._update(self.mlp(normed_ND, ops, copies), self.post_mlp_norm, ops)

    def _update(self, update_ND: Tensor, norm: Norm | None, ops: LayerOps) -> Tensor:
        """An update of the residual stream, normed and scaled where the family does so."""
        if norm is not None:
            update_ND = norm(update_ND, ops)
        return update_ND if self.residual_scale == 1.0 else update_ND * self.residual_scale

    def view(self, name: ViewName) -> View:
        """The projections of a view."""
        view = self.ar if name == "ar" else self.diffusion
        assert view is not None
        return view


def _sum_and_norm(
    hidden_ND: Tensor, delta_ND: Tensor | None, norm: Norm | None, ops: LayerOps
) -> tuple[Tensor, Tensor]:
    """The sum, and its norm. Without a norm both are one tensor, which nothing may change in place."""
    if norm is not None:
        return norm.of_sum(hidden_ND, delta_ND, ops)
    hidden_ND = hidden_ND if delta_ND is None else hidden_ND + delta_ND
    return hidden_ND, hidden_ND
