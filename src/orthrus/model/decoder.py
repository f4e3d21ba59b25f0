"""The dual-view decoder: embeddings, norms, MLPs and head once; attention projections twice; one cache.

Guarantee: where the probes of `kernels` hold, the logits of an `ar` row, and the K/V it leaves behind, have the same
bits whatever else ran in its pass. Modes are methods: `ar` verifies and extends, `diffuse` drafts,
`ar_and_diffuse` does both in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.cache import CacheWindow, KVCache
from orthrus.config import KEY_BLOCK, DecoderConfig, DiffusionConfig
from orthrus.model.kernels import MOST_ROWS, Kernels, Linear, Places, RowRule, attend_in_blocks
from orthrus.model.layers import Layer, View, ViewName, scale
from orthrus.model.masks import Bias, beside_bias, block_bias, causal_bias
from orthrus.model.probes import AttentionChoice, choose_attention, pack_linears
from orthrus.model.rope import RopeTable


@dataclass(frozen=True)
class Part:
    """The rows of a pass that go through one view: tokens [B, R], where they stand, and what they attend to.

    Several biases serve as many equal runs of rows, each in a call of its own.
    """

    view: ViewName
    tokens_BR: Tensor
    places: Places
    biases: list[Bias]


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
        self.norm = scale(config.hidden_size, dtype, device)
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
        """
        R, lengths = tokens_BR.shape[1], cache.lengths
        padded = self._padded(tokens_BR)
        span = self._reserve(cache, max(lengths) + padded)
        (hidden_BRD,) = self._layers([self._ar_part(tokens_BR, lengths, padded, span)], cache, span)
        wanted = range(R) if rows is None else rows
        return self.logits(hidden_BRD[:, [R - 1 - row for row in wanted]])

    @torch.inference_mode()
    def diffuse(self, roots: Sequence[int], width: int, cache: CacheWindow, rows: int) -> Tensor:
        """Diffusion pass over one block per sequence: its root, then `width` - 1 mask tokens, right after the cache.

        Every row sees the cache and, both ways, its own block. Returns the logits [B, rows, V] of the first `rows`
        rows: row j predicts the token j + 1 places after the root.
        """
        lengths = cache.lengths
        span = self._reserve(cache, max(lengths) + width)
        roots_BJ = torch.tensor(list(roots), device=self.device)[:, None]
        where = lengths, [block_bias(lengths, width, span, self.norm)]
        (hidden_BRD,) = self._layers([self._blocks_part(roots_BJ, lengths, [0], width, where)], cache, span)
        del where  # the head needs no mask
        return self.logits(hidden_BRD[:, :rows])

    @torch.inference_mode()
    def ar_and_diffuse(
        self,
        tokens_BR: Tensor,
        candidates: Sequence[int],
        width: int,
        cache: CacheWindow,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`ar` over all rows, and in the same pass J blocks of `width` rows per sequence, each rooted in one of them.

        Block j is the one that `diffuse` would run if the rows before row `candidates[j]` were cached and that row were
        the anchor: it sees the cache, the AR rows before its root, and itself. Nothing an AR row computes depends on
        it. Returns the AR logits [B, len(rows), V] of the rows asked for, and the hidden states [B, J, width, D] of the
        blocks, of which `logits` makes logits when it is known which block counts.
        """
        R, lengths = tokens_BR.shape[1], cache.lengths
        padded, J = self._padded(tokens_BR), len(candidates)
        span = self._reserve(cache, max(lengths) + padded + J * width)
        ar = self._ar_part(tokens_BR, lengths, padded, span)
        slots = [length + padded for length in lengths]
        biases = [
            beside_bias(ar.biases[0], R, row, [slot + j * width for slot in slots], width)
            for j, row in enumerate(candidates)
        ]
        parts = [ar, self._blocks_part(tokens_BR[:, list(candidates)], lengths, candidates, width, (slots, biases))]
        hidden_BRD, blocks_BND = self._layers(parts, cache, span)
        logits_BRV = self.logits(hidden_BRD[:, [R - 1 - row for row in (range(R) if rows is None else rows)]])
        return logits_BRV, blocks_BND.unflatten(1, (J, width))

    def logits(self, normed_BRD: Tensor) -> Tensor:
        """The head [B, R, V] over final hidden states; of no rows where there are none."""
        B, R, D = normed_BRD.shape
        if R == 0:
            return normed_BRD.new_empty(B, 0, self.config.vocab_size)
        return self.head(normed_BRD.reshape(B * R, D)).view(B, R, -1)

    def _ar_part(self, tokens_BR: Tensor, lengths: list[int], padded: int, span: int) -> Part:
        """Causal rows, in descending order of position (see `causal_bias`), with padding after them."""
        R, attended = tokens_BR.shape[1], self.attention.padded(tokens_BR.shape[1])
        order = torch.tensor([*range(R - 1, -1, -1), *range(R, padded)], device=self.device)
        positions_BR = torch.tensor(lengths, device=self.device)[:, None] + order
        places = self._places(positions_BR, positions_BR, max(lengths) + padded, attended)
        bias = causal_bias(lengths, R, attended, span, self.norm)
        return Part("ar", F.pad(tokens_BR.flip(1), (0, padded - R)), places, [bias])

    def _blocks_part(
        self, roots_BJ: Tensor, lengths: list[int], rows: Sequence[int], width: int, where: tuple[list[int], list[Bias]]
    ) -> Part:
        """J blocks of a root and masks per sequence, from length + row on; `where`: their slots, and what each sees."""
        if self.diffusion is None:
            raise ValueError("this checkpoint has no diffusion view: load an adapter or a published Orthrus checkpoint")
        (B, J), (slots, biases) = roots_BJ.shape, where
        tokens_BJW = torch.full((B, J, width), self.diffusion.mask_token_id, device=self.device)
        tokens_BJW[:, :, 0] = roots_BJ
        offsets_N = torch.tensor([row + n for row in rows for n in range(width)], device=self.device)
        positions_BN = torch.tensor(lengths, device=self.device)[:, None] + offsets_N
        slots_BN = torch.tensor(slots, device=self.device)[:, None] + torch.arange(J * width, device=self.device)
        places = self._places(positions_BN, slots_BN, max(lengths) + max(rows) + width, J * width)
        return Part("diffusion", tokens_BJW.flatten(1), places, biases)

    def _layers(self, parts: list[Part], cache: CacheWindow, span: int) -> list[Tensor]:
        """All layers up to the final norm, [B, R, D] for each part. Only the attention projections differ by view."""
        kernels, eps, sizes = self.kernels, self.config.norm_eps, [part.tokens_BR.numel() for part in parts]
        hidden_ND = self.embedding[torch.cat([part.tokens_BR.flatten() for part in parts])]
        delta_ND = torch.zeros_like(hidden_ND)
        for layer, (keys, values) in zip(self.stack, cache.layers(span), strict=True):
            normed = kernels.add_norm(hidden_ND, delta_ND, layer.attention_norm, eps).split(sizes)
            queries = [
                kernels.place(view.qkv(x_ND), view.norms, part.places, keys, values)
                for part, x_ND in zip(parts, normed, strict=True)
                for view in [layer.view(part.view)]
            ]  # every part's keys are in place before anyone attends: blocks read the AR rows of this very pass
            deltas = [
                layer.view(part.view).o(self._attend(part, q_BRHE, keys, values).flatten(0, 1))
                for part, q_BRHE in zip(parts, queries, strict=True)
            ]
            delta_ND = deltas[0] if len(deltas) == 1 else torch.cat(deltas)
            gate_up = layer.gate_up(kernels.add_norm(hidden_ND, delta_ND, layer.mlp_norm, eps))
            delta_ND = layer.down(kernels.gate(gate_up))
        final = kernels.add_norm(hidden_ND, delta_ND, self.norm, eps).split(sizes)
        return [x_ND.view(*part.tokens_BR.shape, -1) for part, x_ND in zip(parts, final, strict=True)]

    def _attend(self, part: Part, q_BRHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The rows of a part over the cache [B, R, H * E], in as many calls as it has biases."""
        biases, R = part.biases, part.tokens_BR.shape[1]
        pieces = [q_BRHE] if len(biases) == 1 else q_BRHE.chunk(len(biases), dim=1)
        found = []
        for piece, bias in zip(pieces, biases, strict=True):
            found.append(self.attention.attend(piece, keys, values, bias.open()))
            bias.close()
        attention = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        surplus = part.places.attended - R
        return F.pad(attention, (0, 0, 0, -surplus)) if surplus else attention  # a negative pad cuts

    def _padded(self, tokens_BR: Tensor) -> int:
        """How many rows per sequence the matrix products are given."""
        B, R = tokens_BR.shape
        return next(rows for rows in range(R, R + 16) if B * rows % self.linear_multiple == 0)

    def _reserve(self, cache: CacheWindow, positions: int) -> int:
        """Make room, and say how many keys the pass attends to: a multiple under which the bits hold."""
        cache.reserve(positions)
        multiple = self.attention.key_multiple
        return -(-positions // multiple) * multiple

    def _places(self, positions_BR: Tensor, slots_BR: Tensor, last: int, attended: int) -> Places:
        return Places(slots_BR, *self.rope.rows(positions_BR, last), attended, self.config.norm_eps)


def _checked(diffusion: DiffusionConfig, config: DecoderConfig) -> DiffusionConfig:
    if diffusion.mask_token_id >= config.vocab_size:
        raise ValueError(f"mask_token_id {diffusion.mask_token_id} is outside the vocabulary of {config.vocab_size}")
    return diffusion
