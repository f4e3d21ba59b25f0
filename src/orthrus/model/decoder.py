"""The dual-view decoder: embeddings, norms, MLPs and head once; attention projections twice; one cache.

Guarantee: where the probes of `kernels` hold, the logits of an `ar` row, and the K/V it leaves behind, have the same
bits whatever else ran in its pass. Modes are methods: `ar` verifies and extends, `diffuse` drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.cache import CacheWindow, KVCache
from orthrus.config import KEY_BLOCK, DecoderConfig, DiffusionConfig
from orthrus.model.kernels import MOST_ROWS, Kernels, Linear, Places, RowRule, attend_in_blocks
from orthrus.model.masks import causal_bias, prefix_bias
from orthrus.model.probes import AttentionChoice, choose_attention, pack_linears
from orthrus.model.rope import RopeTable

ViewName = Literal["ar", "diffusion"]


class View(nn.Module):
    """The attention projections of one view in one layer: fused QKV, output, q/k norms where the family has them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        width, D, E = (config.heads + 2 * config.kv_heads) * config.head_dim, config.hidden_size, config.head_dim
        self.qkv = Linear(D, width, bias=config.qkv_bias, dtype=dtype, device=device)
        self.o = Linear(config.heads * E, D, bias=config.o_bias, dtype=dtype, device=device)
        self.q_norm = _scale(E, dtype, device) if config.qk_norm else None
        self.k_norm = _scale(E, dtype, device) if config.qk_norm else None

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """The q and k norms, where the family has them."""
        return None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)


class Layer(nn.Module):
    """One decoder layer. Only `diffusion` is ever trained."""

    def __init__(self, config: DecoderConfig, diffusion: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = _scale(D, dtype, device)
        self.mlp_norm = _scale(D, dtype, device)
        self.ar = View(config, dtype, device)
        self.diffusion = View(config, dtype, device) if diffusion else None
        self.gate_up = Linear(D, 2 * inner, bias=config.mlp_bias, dtype=dtype, device=device)
        self.down = Linear(inner, D, bias=config.mlp_bias, dtype=dtype, device=device)

    def view(self, name: ViewName) -> View:
        """The projections of a view."""
        chosen = self.ar if name == "ar" else self.diffusion
        assert chosen is not None
        return chosen


class Decoder(nn.Module):
    """A frozen backbone with an optional diffusion view. Weights are empty until a checkpoint fills them."""

    def __init__(
        self, config: DecoderConfig, diffusion: DiffusionConfig | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, dtype, device
        self.diffusion = None if diffusion is None else _checked(diffusion, config)
        self.embedding = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device), requires_grad=False
        )
        self.layers = nn.ModuleList(Layer(config, diffusion is not None, dtype, device) for _ in range(config.layers))
        self.norm = _scale(config.hidden_size, dtype, device)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
        if config.tied_head:
            self.head.weight = self.embedding
        self.diffusion_bytes = sum(p.nbytes for name, p in self.named_parameters() if ".diffusion." in name)
        self.rope = RopeTable(config.rope, device)
        self.kernels = Kernels()
        self.attention = AttentionChoice(attend_in_blocks, RowRule(2, MOST_ROWS, exact=False), KEY_BLOCK)
        self.linear_multiple = 2
        self.exact = False

    def prepare(self, kernels: Kernels | None = None) -> Decoder:
        """Choose kernels for inference: pack the weights, probe every shape, fix the layout of a pass.

        `exact` tells whether the probes found a layout under which all bits hold.
        """
        self.kernels = kernels or self.kernels
        pack_linears(self, self.kernels)
        self.attention = choose_attention(self.config, self.dtype, self.device)
        rules = [linear.rule for linear in self.linears().values()]
        self.linear_multiple = max(rule.multiple for rule in rules)
        self.exact = self.attention.rule.exact and all(rule.exact for rule in rules)
        return self

    @property
    def most_rows(self) -> int:
        """The most rows of one sequence in a pass: longer prompts go through in pieces."""
        return self.attention.rule.most

    @property
    def stack(self) -> list[Layer]:
        """The layers, in order."""
        return cast(list[Layer], list(self.layers))

    def linears(self) -> dict[str, Linear]:
        """All linear maps by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Linear)}

    def set_view(self, diffusion: DiffusionConfig) -> Decoder:
        """Set block size, mask token and trained rows; a decoder without a diffusion view gets an empty one."""
        self.diffusion = _checked(diffusion, self.config)
        for layer in self.stack:
            if layer.diffusion is None:
                layer.diffusion = View(self.config, self.dtype, self.device)
        return self

    def new_cache(self, slots: int) -> KVCache:
        """An empty cache for `slots` sequences of this decoder."""
        return KVCache(self.config, slots, self.dtype, self.device)

    @torch.inference_mode()
    def ar(self, tokens_BR: Tensor, cache: CacheWindow, rows: Sequence[int] | None = None) -> Tensor:
        """Causal pass: writes the K/V of all R rows after each cached length, commits nothing.

        Returns the logits [B, len(rows), V] of the rows asked for (all where None; there may be none): row i predicts
        the token after it.

        Inside, the rows run in descending order of position (see `causal_bias`), padding after them.
        """
        B, R = tokens_BR.shape
        padded = next(rows for rows in range(R, R + 16) if B * rows % self.linear_multiple == 0)
        attended = self.attention.padded(R)
        lengths = cache.lengths
        span = self._reserve(cache, max(lengths) + padded)
        lengths_B1 = torch.tensor(lengths, device=self.device)[:, None]
        order = [*range(R - 1, -1, -1), *range(R, padded)]
        positions_BR = lengths_B1 + torch.tensor(order, device=self.device)
        bias = causal_bias(lengths, R, attended, span, self.norm)
        places = self._places(positions_BR, max(lengths) + padded, attended)
        hidden_BRD = self._layers("ar", F.pad(tokens_BR.flip(1), (0, padded - R)), places, cache, bias)
        wanted = range(R) if rows is None else rows
        return self._logits(hidden_BRD[:, [R - 1 - row for row in wanted]])

    @torch.inference_mode()
    def diffuse(self, roots: Sequence[int], width: int, cache: CacheWindow, rows: int) -> Tensor:
        """Diffusion pass over one block per sequence: its root, then `width` - 1 mask tokens, right after the cache.

        Every row sees the cache and, both ways, its own block. Returns the logits [B, rows, V] of the first `rows`
        rows: row j predicts the token j + 1 places after the root.
        """
        if self.diffusion is None:
            raise ValueError("this checkpoint has no diffusion view: load an adapter or a published Orthrus checkpoint")
        B, lengths = len(roots), cache.lengths
        span = self._reserve(cache, max(lengths) + width)
        tokens_BR = torch.full((B, width), self.diffusion.mask_token_id, device=self.device)
        tokens_BR[:, 0] = torch.tensor(list(roots), device=self.device)
        lengths_B1 = torch.tensor(lengths, device=self.device)[:, None]
        positions_BR = lengths_B1 + torch.arange(width, device=self.device)
        bias = prefix_bias([length + width for length in lengths], width, span, self.norm)
        places = self._places(positions_BR, max(lengths) + width, width)
        return self._logits(self._layers("diffusion", tokens_BR, places, cache, bias)[:, :rows])

    def _layers(
        self, view: ViewName, tokens_BR: Tensor, places: Places, cache: CacheWindow, bias_B1RS: Tensor
    ) -> Tensor:
        """All layers through one view, up to the final norm [B, R, D]; MLPs and norms do not know which view it is."""
        kernels, eps, R = self.kernels, self.config.norm_eps, tokens_BR.shape[1]
        hidden_ND = self.embedding[tokens_BR].flatten(0, 1)
        delta_ND = torch.zeros_like(hidden_ND)
        for layer, (keys, values) in zip(self.stack, cache.layers(bias_B1RS.shape[-1]), strict=True):
            projections = layer.view(view)
            qkv = projections.qkv(kernels.add_norm(hidden_ND, delta_ND, layer.attention_norm, eps))
            q_BRHE = kernels.place(qkv, projections.norms, places, keys, values)
            attention = self.attention.attend(q_BRHE, keys, values, bias_B1RS)
            if places.attended != R:
                attention = F.pad(attention, (0, 0, 0, R - places.attended))  # a negative pad cuts
            delta_ND = projections.o(attention.flatten(0, 1))
            gate_up = layer.gate_up(kernels.add_norm(hidden_ND, delta_ND, layer.mlp_norm, eps))
            delta_ND = layer.down(kernels.gate(gate_up))
        return kernels.add_norm(hidden_ND, delta_ND, self.norm, eps).view(*tokens_BR.shape, -1)

    def _logits(self, normed_BRD: Tensor) -> Tensor:
        B, R, D = normed_BRD.shape
        if R == 0:
            return normed_BRD.new_empty(B, 0, self.config.vocab_size)
        return self.head(normed_BRD.reshape(B * R, D)).view(B, R, -1)

    def _reserve(self, cache: CacheWindow, positions: int) -> int:
        """Make room, and say how many keys the pass attends to: a multiple under which the bits hold."""
        cache.reserve(positions)
        multiple = self.attention.key_multiple
        return -(-positions // multiple) * multiple

    def _places(self, positions_BR: Tensor, last: int, attended: int) -> Places:
        return Places(positions_BR, *self.rope.rows(positions_BR, last), attended, self.config.norm_eps)


def _checked(diffusion: DiffusionConfig, config: DecoderConfig) -> DiffusionConfig:
    if diffusion.mask_token_id >= config.vocab_size:
        raise ValueError(f"mask_token_id {diffusion.mask_token_id} is outside the vocabulary of {config.vocab_size}")
    return diffusion


def _scale(size: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
