"""The dual-view decoder: embeddings, norms, MLPs and head once; attention projections twice; one cache.

Guarantee: where the probes of `kernels` hold, the logits of an `ar` row, and the K/V it leaves behind, have the same
bits whatever else ran in its pass. Modes are methods: `ar` verifies and extends, `diffuse` drafts,
`ar_and_diffuse` does both in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.backends.invariance import AttentionChoice, choose_attention, pack_linears
from orthrus.backends.linears import MOST_ROWS, Linear, RowRule
from orthrus.backends.torch import Kernels, attend_in_blocks
from orthrus.cache import CacheWindow, KVCache
from orthrus.config import KEY_BLOCK, DecoderConfig, DiffusionConfig
from orthrus.masks import Bias, beside_bias, block_bias
from orthrus.model.layers import Layer, View, scale
from orthrus.model.rope import RopeTable
from orthrus.runner.cuda_graphs import Graphs, on_cuda
from orthrus.runner.float_state import denormals_kept
from orthrus.runner.layout import Layout, Part
from orthrus.runner.native import Stack


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
        self.fused: dict[bool, Stack | None] = {False: None, True: None}
        self.graphs: Graphs | None = None
        self.drafting_head: tuple[Linear] | None = None  # in a tuple: no part of the model
        self.exact = False

    def prepare(self, kernels: Kernels | None = None, *, int8: bool = False, cheap_drafts: bool = False) -> Decoder:
        """Choose kernels for inference: pack the weights, quantised if `int8`, probe every shape, lay out passes.

        `cheap_drafts`: give passes that only draft faster forms of all their weights, where there are any; in int8,
        whose other weights are as fast, of the view.
        `exact` tells whether the probes found a layout under which all bits hold.
        """
        self.kernels = kernels or self.kernels
        if cheap_drafts:
            self._cheapen(copies=not int8)
        pack_linears(self, self.kernels, int8=int8)
        self.attention = choose_attention(self.config, self.dtype, self.device, self.kernels)
        rules = [linear.rule for linear in self.linears().values()]
        self.linear_multiple = max(rule.multiple for rule in rules)
        self.fused = {drafting: Stack.of(self, drafting=drafting) for drafting in (False, True)}
        self.graphs = Graphs(self, on_cuda()) if self.device.type == "cuda" else None
        self.exact = self.attention.rule.exact and all(rule.exact for rule in rules)
        return self

    def _cheapen(self, *, copies: bool) -> None:
        """Faster forms of what drafts alone go through: the view, and `copies` of MLPs and head beside the exact."""
        if self.diffusion is None:
            return
        head = self.kernels.cheap(self.head) if copies else None
        for layer in self.stack:
            assert layer.diffusion is not None
            layer.diffusion.qkv = self.kernels.cheap(layer.diffusion.qkv, view=True) or layer.diffusion.qkv
            layer.diffusion.o = self.kernels.cheap(layer.diffusion.o, view=True) or layer.diffusion.o
            gate_up, down = (self.kernels.cheap(linear) if copies else None for linear in (layer.gate_up, layer.down))
            layer.drafting = (gate_up, down) if gate_up and down else None
        self.drafting_head = (head,) if head else None
        extra = [linear for name, linear in self.linears().items() if ".diffusion." in name]
        extra += [linear for layer in self.stack for linear in layer.drafting or ()]
        self.diffusion_bytes = sum(linear.stored_bytes for linear in (*extra, *(self.drafting_head or ())))

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
        (B, R), lengths = tokens_BR.shape, cache.lengths
        span = self._reserve(cache, max(lengths) + R)
        rows = range(R) if rows is None else rows
        picked = [b * R + R - 1 - row for b in range(B) for row in rows]
        part = self._layout.ar(tokens_BR.tolist(), lengths, span)
        logits_LV, _ = self._run([part], cache, span, picked, len(picked))
        return logits_LV.view(B, len(rows), self.config.vocab_size)

    @torch.inference_mode()
    def diffuse(self, roots: Sequence[int | None], width: int, cache: CacheWindow, rows: int) -> Tensor:
        """Diffusion pass over one block per sequence: its root, then `width` - 1 mask tokens, right after the cache.

        Every row sees the cache and, both ways, its own block. Returns the logits [B, rows, V] of the first `rows`
        rows: row j predicts the token j + 1 places after the root. A sequence whose root is None has none.
        """
        lengths = cache.lengths
        span = self._reserve(cache, max(lengths) + width)
        blocks = [[] if root is None else [root] for root in roots]
        where = lengths, lambda: [block_bias(lengths, width, span, self.norm)]
        count = sum(len(block) for block in blocks)
        picked = [start * width + row for start in range(count) for row in range(rows)]
        part = self._layout.blocks(blocks, lengths, [0], width, self._mask, where)
        logits_LV, _ = self._run([part], cache, span, picked, len(picked))
        return logits_LV.view(count, rows, self.config.vocab_size)

    @torch.inference_mode()
    def ar_and_diffuse(
        self,
        rows: Sequence[Sequence[int]],
        candidates: Sequence[int],
        width: int,
        cache: CacheWindow,
        *,
        blocks: Sequence[int] | None = None,
        wanted: Sequence[int] | None = None,
        decided: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """An AR pass over `rows[b]` of each sequence, and with them blocks of `width` rows, rooted in some of them.

        Block j is the one that `diffuse` would run if the rows before row `candidates[j]` were cached and that row were
        the anchor: it sees the cache, the AR rows before its root, and itself. Nothing an AR row computes depends on
        it. No two sequences need be alike: each has as many rows as it is given, at least one, and the first
        `blocks[b]` of the candidates (all where None; there may be none). Nobody pays for rows that others have.

        Returns, per sequence, the AR logits [R, V] of the `wanted` rows (all where None), and the hidden states
        [J, width, D] of its blocks, of which `logits` makes logits when it is known which block counts. Where that is
        `decided`, or not worth waiting for, their logits [J, width, V] come instead: few rows more cost a head little.
        """
        counts = [len(candidates)] * len(rows) if blocks is None else list(blocks)
        R, J, lengths = max(len(own) for own in rows), max(counts), cache.lengths
        span = self._reserve(cache, max(lengths) + R + J * width)
        parts, slots = [self._layout.ar(rows, lengths, span)], [length + R for length in lengths]
        if J:

            def biases() -> list[Bias]:
                starts = ([slot + j * width for slot in slots] for j in range(J))
                rows_of = zip(candidates, starts, strict=False)
                return [beside_bias(parts[0].biases[0], R, row, own, width) for row, own in rows_of]

            roots = [[own[row] for row in candidates[:n]] for own, n in zip(rows, counts, strict=True)]
            parts.append(self._layout.blocks(roots, lengths, candidates[:J], width, self._mask, (slots, biases)))
        ends = accumulate(len(own) for own in rows)
        asked = [
            [end - 1 - row for row in (range(len(own)) if wanted is None else wanted)]
            for own, end in zip(rows, ends, strict=True)
        ]
        picked = list(chain.from_iterable(asked))
        known, drafted = len(picked), sum(counts) * width
        picked += range(len(parts[0].tokens), len(parts[0].tokens) + drafted)
        logits_NV, found_NX = self._run(parts, cache, span, picked, len(picked) if decided else known)
        if decided:
            logits_NV, found_NX = logits_NV.split([known, drafted])
        found = found_NX.view(sum(counts), width, found_NX.shape[1]).split(counts)
        return list(logits_NV.split([len(own) for own in asked])), list(found)

    def logits(self, normed_BRD: Tensor, *, drafting: bool = False) -> Tensor:
        """The head [B, R, V] over final hidden states, for drafts alone or for all; of no rows where there are none."""
        B, R, D = normed_BRD.shape
        if R == 0:
            return normed_BRD.new_empty(B, 0, self.config.vocab_size)
        return self.head_of(drafting=drafting)(normed_BRD.reshape(B * R, D)).view(B, R, -1)

    def head_of(self, *, drafting: bool) -> Linear:
        """The head of passes that only draft or of others."""
        (head,) = (drafting and self.drafting_head) or (self.head,)
        return head

    @property
    def _layout(self) -> Layout:
        return Layout(self.rope, self.attention, self.linear_multiple, self.norm, self.config.norm_eps)

    @property
    def _mask(self) -> int:
        if self.diffusion is None:
            raise ValueError("this checkpoint has no diffusion view: load an adapter or a published Orthrus checkpoint")
        return self.diffusion.mask_token_id

    def _run(
        self, parts: list[Part], cache: CacheWindow, span: int, picked: list[int], wanted: int
    ) -> tuple[Tensor, Tensor]:
        """All layers, over the rows of all parts, one after another: the logits [wanted, V] of the first of those
        `picked`, and the final hidden states [.., D] of the others."""
        drafting = all(part.view == "diffusion" for part in parts)
        stack = self.fused[drafting]
        with denormals_kept():
            if stack is not None and self.attention.sees:
                return stack.run(parts, cache, picked, wanted)
            if self.graphs is not None and self.attention.sees:
                return self.graphs.run(parts, picked, wanted, cache)
            return self.launch(parts, picked, wanted, cache, span)

    def launch(
        self, parts: list[Part], picked: list[int] | Tensor, wanted: int, cache: CacheWindow, span: int
    ) -> tuple[Tensor, Tensor]:
        """The same, kernel by kernel, over the first `span` places of the cache."""
        drafting = all(part.view == "diffusion" for part in parts)
        picked_PD = self._layers(parts, cache, span, drafting=drafting)[picked]
        return self.logits(picked_PD[None, :wanted], drafting=drafting)[0], picked_PD[wanted:]

    def _layers(self, parts: list[Part], cache: CacheWindow, span: int, *, drafting: bool) -> Tensor:
        """All layers up to the final norm [N, D]. Only the attention projections differ by view."""
        kernels, eps, sizes = self.kernels, self.config.norm_eps, [len(part.tokens_N) for part in parts]
        hidden_ND = self.embedding[torch.cat([part.tokens_N for part in parts])]
        delta_ND = torch.zeros_like(hidden_ND)
        for layer, (keys, values) in zip(self.stack, cache.layers(span), strict=True):
            normed = kernels.add_norm(hidden_ND, delta_ND, layer.attention_norm, eps).split(sizes)
            queries = [
                kernels.place(view.qkv(x_ND), view.norms, part.places, keys, values)
                for part, x_ND in zip(parts, normed, strict=True)
                for view in [layer.view(part.view)]
            ]  # every part's keys are in place before anyone attends: blocks read the AR rows of this very pass
            deltas = [
                layer.view(part.view).o(self._attend(part, q_BRHE, keys, values))
                for part, q_BRHE in zip(parts, queries, strict=True)
            ]
            delta_ND = deltas[0] if len(deltas) == 1 else torch.cat(deltas)
            gate_up, down = layer.mlp(drafting=drafting)
            delta_ND = down(kernels.gate(gate_up(kernels.add_norm(hidden_ND, delta_ND, layer.mlp_norm, eps))))
        return kernels.add_norm(hidden_ND, delta_ND, self.norm, eps)

    def _attend(self, part: Part, q_BRHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The rows of a part over the cache [N, H * E]; with masks, in as many calls as it has."""
        places, surplus = part.places, len(part.tokens_N) - part.places.table_3N.shape[1]
        if self.attention.sees:
            attention = self.kernels.attend(q_BRHE[0], keys, values, part.sight)
            return F.pad(attention, (0, 0, 0, surplus)) if surplus else attention
        biases = part.biases
        pieces = [q_BRHE] if len(biases) == 1 else q_BRHE.chunk(len(biases), dim=1)
        found = []
        for piece, bias in zip(pieces, biases, strict=True):
            found.append(self.attention.attend(piece, keys, values, bias.open()))
            bias.close()
        attention = (found[0] if len(found) == 1 else torch.cat(found, dim=1)).flatten(0, 1)
        if not places.full:
            attention = attention[places.table_3N[0]]
        return F.pad(attention, (0, 0, 0, surplus)) if surplus else attention

    def _reserve(self, cache: CacheWindow, positions: int) -> int:
        """Make room, and say how many keys the pass attends to: a multiple under which the bits hold."""
        cache.reserve(positions)
        multiple = self.attention.key_multiple
        return -(-positions // multiple) * multiple


def _checked(diffusion: DiffusionConfig, config: DecoderConfig) -> DiffusionConfig:
    if diffusion.mask_token_id >= config.vocab_size:
        raise ValueError(f"mask_token_id {diffusion.mask_token_id} is outside the vocabulary of {config.vocab_size}")
    return diffusion
