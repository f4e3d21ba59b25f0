"""The dual-view decoder: embeddings, norms, MLPs and head once; attention projections twice; one cache.

Guarantee: where the probes of `kernels` hold, the logits of an `ar` row, and the K/V it leaves behind, have the same
bits whatever else ran in its pass. Modes are methods: `ar` verifies and extends, `diffuse` drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.cache import CacheWindow, KVCache
from orthrus.config import KEY_BLOCK, DecoderConfig, DiffusionConfig
from orthrus.model.kernels import Attend, Linear, RowRule, attend_in_blocks, choose_attention, pack_linears
from orthrus.model.rope import RopeTable, rotate


class View(nn.Module):
    """The attention projections of one view in one layer: fused QKV, output, q/k norms where the family has them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width, D, E = (config.heads + 2 * config.kv_heads) * config.head_dim, config.hidden_size, config.head_dim
        self.qkv = Linear(D, width, bias=config.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(config.heads * E, D, bias=config.o_bias, dtype=dtype, device=device)
        self.q_norm = _scale(E, dtype, device) if config.qk_norm else None
        self.k_norm = _scale(E, dtype, device) if config.qk_norm else None


class Layer(nn.Module):
    """One decoder layer. Only `diffusion` is ever trained."""

    def __init__(self, config: DecoderConfig, diffusion: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = _scale(D, dtype, device)
        self.mlp_norm = _scale(D, dtype, device)
        self.ar = View(config, dtype, device)
        self.diffusion = View(config, dtype, device) if diffusion else None
        self.gate = Linear(D, inner, bias=config.mlp_bias, dtype=dtype, device=device)
        self.up = Linear(D, inner, bias=config.mlp_bias, dtype=dtype, device=device)
        self.down = Linear(inner, D, bias=config.mlp_bias, dtype=dtype, device=device)


class Decoder(nn.Module):
    """A frozen backbone with an optional diffusion view. Weights are empty until a checkpoint fills them."""

    def __init__(
        self, config: DecoderConfig, diffusion: DiffusionConfig | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        if diffusion is not None and diffusion.mask_token_id >= config.vocab_size:
            raise ValueError(
                f"mask_token_id {diffusion.mask_token_id} is outside the vocabulary of {config.vocab_size}"
            )
        self.config, self.diffusion, self.dtype, self.device = config, diffusion, dtype, device
        self.embedding = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device), requires_grad=False
        )
        self.layers = nn.ModuleList(Layer(config, diffusion is not None, dtype, device) for _ in range(config.layers))
        self.norm = _scale(config.hidden_size, dtype, device)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
        if config.tied_head:
            self.head.weight = self.embedding
        sizes = {name: parameter.nbytes for name, parameter in self.named_parameters()}
        self.diffusion_bytes = sum(size for name, size in sizes.items() if ".diffusion." in name)
        self.backbone_bytes = sum(sizes.values()) - self.diffusion_bytes
        self.rope = RopeTable(config.rope, device)
        self.attend: Attend = attend_in_blocks
        self.row_rule = RowRule(1, 512, exact=False)

    def prepare(self) -> Decoder:
        """Choose kernels for inference: pack the weights, probe every shape, fix the row rule of a pass."""
        pack_linears(self)
        config = self.config
        self.attend, attention = choose_attention(
            config.heads, config.kv_heads, config.head_dim, self.dtype, self.device
        )
        rules = [attention, *self.linear_rules()]
        self.row_rule = RowRule(max(r.multiple for r in rules), attention.most, all(r.exact for r in rules))
        return self

    @property
    def stack(self) -> list[Layer]:
        """The layers, in order."""
        return cast(list[Layer], list(self.layers))

    def linear_rules(self) -> list[RowRule]:
        """The row rules of all linear maps."""
        return [module.rule for module in self.modules() if isinstance(module, Linear)]

    def new_cache(self, slots: int) -> KVCache:
        """An empty cache for `slots` sequences of this decoder."""
        return KVCache(self.config, slots, self.dtype, self.device)

    @torch.inference_mode()
    def ar(self, tokens_BR: Tensor, cache: CacheWindow, rows: Sequence[int] | None = None) -> Tensor:
        """Causal pass: writes the K/V of all R rows after each cached length, commits nothing.

        Returns the logits [B, len(rows), V] of the rows asked for (all where None): row i predicts the token after it.

        Inside, the rows run in descending order of position, so that one vector per sequence, read from a different
        offset by every row, is the whole causal mask: no mask of rows x context is ever stored.
        """
        B, R = tokens_BR.shape
        padded = -(-R // self.row_rule.multiple) * self.row_rule.multiple
        lengths = cache.lengths
        span = self._reserve(cache, max(lengths) + padded)
        lengths_B1 = torch.tensor(lengths, device=self.device)[:, None]
        positions_BR = lengths_B1 + torch.arange(padded - 1, -1, -1, device=self.device)
        visible = torch.arange(span + padded, device=self.device) < lengths_B1 + padded
        bias = _bias(visible, self.dtype).as_strided((B, 1, padded, span), (span + padded, 0, 1, 1))
        hidden_NE = self.embedding[F.pad(tokens_BR.flip(1), (padded - R, 0))].flatten(0, 1)
        rope = self.rope.rows(positions_BR, max(lengths) + padded)
        for index, layer in enumerate(self.stack):
            hidden_NE = self._layer(layer, layer.ar, hidden_NE, rope, (cache, index, positions_BR, bias))
        hidden_BRE = hidden_NE.view(B, padded, -1)
        wanted = range(R) if rows is None else rows
        return self._logits(hidden_BRE[:, [padded - 1 - row for row in wanted]])

    @torch.inference_mode()
    def diffuse(self, roots: Sequence[int], width: int, cache: CacheWindow, rows: int) -> Tensor:
        """Diffusion pass over one block per sequence: its root, then `width` - 1 mask tokens, right after the cache.

        Every row sees the cache and, both ways, its own block. Returns the logits [B, rows, V] of the first `rows`
        rows: row j predicts the token j + 1 places after the root.
        """
        if self.diffusion is None:
            raise ValueError(
                "this checkpoint has no diffusion view: load an adapter, or train one with `orthrus train`"
            )
        B, lengths = len(roots), cache.lengths
        span = self._reserve(cache, max(lengths) + width)
        tokens_BR = torch.full((B, width), self.diffusion.mask_token_id, device=self.device)
        tokens_BR[:, 0] = torch.tensor(list(roots), device=self.device)
        lengths_B1 = torch.tensor(lengths, device=self.device)[:, None]
        positions_BR = lengths_B1 + torch.arange(width, device=self.device)
        visible = torch.arange(span, device=self.device) < lengths_B1 + width
        bias = _bias(visible, self.dtype)[:, None, None].expand(B, 1, width, span)
        hidden_NE = self.embedding[tokens_BR].flatten(0, 1)
        rope = self.rope.rows(positions_BR, max(lengths) + width)
        for index, layer in enumerate(self.stack):
            assert layer.diffusion is not None
            hidden_NE = self._layer(layer, layer.diffusion, hidden_NE, rope, (cache, index, positions_BR, bias))
        return self._logits(hidden_NE.view(B, width, -1)[:, :rows])

    def _layer(
        self,
        layer: Layer,
        view: View,
        hidden_ND: Tensor,
        rope: tuple[Tensor, Tensor],
        attended: tuple[CacheWindow, int, Tensor, Tensor],
    ) -> Tensor:
        """One layer through one view; the MLP and the norms do not know which."""
        cache, index, positions_BR, bias = attended
        config, eps = self.config, self.config.norm_eps
        H, G, E = config.heads, config.kv_heads, config.head_dim
        normed = F.rms_norm(hidden_ND, (config.hidden_size,), layer.attention_norm, eps)
        qkv = view.qkv(normed).view(*positions_BR.shape, H + 2 * G, E)
        qk, v = qkv[:, :, : H + G], qkv[:, :, H + G :]
        if view.q_norm is not None and view.k_norm is not None:
            q, k = qk[:, :, :H], qk[:, :, H:]
            qk = torch.cat((F.rms_norm(q, (E,), view.q_norm, eps), F.rms_norm(k, (E,), view.k_norm, eps)), dim=2)
        qk = rotate(qk, *rope)
        cache.write(index, positions_BR, qk[:, :, H:], v)
        attention = self.attend(qk[:, :, :H], *cache.read(index, bias.shape[-1]), bias)
        hidden_ND = view.o.add(attention.flatten(0, 1), hidden_ND)
        normed = F.rms_norm(hidden_ND, (config.hidden_size,), layer.mlp_norm, eps)
        return layer.down.add(layer.up.mul(normed, layer.gate.silu(normed)), hidden_ND)

    def _logits(self, hidden_BRD: Tensor) -> Tensor:
        B, R, D = hidden_BRD.shape
        normed = F.rms_norm(hidden_BRD.reshape(B * R, D), (D,), self.norm, self.config.norm_eps)
        return self.head(normed).view(B, R, -1)

    def _reserve(self, cache: CacheWindow, positions: int) -> int:
        cache.reserve(positions)
        return -(-positions // KEY_BLOCK) * KEY_BLOCK


def _scale(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, float("-inf"))
