"""The eager executor calls kernel after kernel from Python. It is the reference implementation, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus.backends.interface import AttentionChoice, Kernels
from orthrus.backends.select import DraftWeights
from orthrus.batch import AttentionMetadata, ForwardBatch, SlotMapping, ViewName, ViewRows
from orthrus.config import PAGE
from orthrus.masks import block_bias, causal_bias
from orthrus.model.decoder import Decoder
from orthrus.model.layers import DecoderLayer
from orthrus.runner.executor import PassResult


@dataclass(frozen=True)
class DeviceRows:
    """The rows of one view on the device.

    mappings: one per rotary table of the decoder. metadata, masks: by the window of a layer. masks: for attention
    kernels that take a mask, one function per chunk of the rectangle of queries, which makes its mask. Where a pass has
    several, each is made for each call, so that memory does not grow with their number. order: where each row is in
    that rectangle; None if the rectangle is the rows as they are.
    """

    rows: ViewRows
    tokens: Tensor
    mappings: list[SlotMapping]
    metadata: dict[int | None, AttentionMetadata]
    masks: dict[int | None, list[Callable[[], Tensor]]]
    order: Tensor | None


class EagerExecutor:
    """Runs passes of one decoder with the given kernels."""

    def __init__(
        self, decoder: Decoder, kernels: Kernels, attention: AttentionChoice, draft_weights: DraftWeights
    ) -> None:
        self.decoder, self.kernels, self.attention, self.draft_weights = decoder, kernels, attention, draft_weights

    def run(self, batch: ForwardBatch) -> PassResult:
        """See `Executor`. All integers of the pass are copied to the device at once."""
        integers = torch.tensor([*chain(*batch.integers)], device=self.decoder.device)
        return self.forward(batch, integers)

    def forward(self, batch: ForwardBatch, integers: Tensor) -> PassResult:
        """The same with the integers of the batch in one tensor on the device, in the order of `batch.integers`."""
        *parts, tables, logit_rows = integers.split([len(values) for values in batch.integers])
        tables_BP = tables.view(len(batch.block_tables), -1)
        per_view = len(parts) // len(batch.views)
        views = [
            self._on_device(rows, parts[n * per_view : (n + 1) * per_view], tables_BP, batch.span)
            for n, rows in enumerate(batch.views)
        ]
        if sum(len(own) for view in views for own in view.masks.values()) == 1:
            ((window, (make,)),) = views[0].masks.items()
            mask = make()
            views = [replace(views[0], masks={window: [lambda: mask]})]
        hidden_PD = self._layers(views, batch, tables_BP)[logit_rows]
        head = (batch.draft_only and self.draft_weights.head) or self.decoder.head
        logits_LV = self.decoder.capped(head(hidden_PD[: batch.num_logits]))
        return PassResult(logits_LV, hidden_PD)

    def _on_device(self, rows: ViewRows, parts: Sequence[Tensor], tables_BP: Tensor, span: int) -> DeviceRows:
        tokens, mapping, positions, segments, kv_lens = parts
        config, table_2N = self.decoder.config, mapping.view(2, -1)
        angles = [rope.rows(positions, max(rows.positions)) for rope in self.decoder.ropes]
        norm = config.norm_eps, config.norm_offset
        slots = [SlotMapping(table_2N, cos, sin, rows.query_shape, *norm) for cos, sin in angles]
        windows, scores = config.windows, (config.attention_scale, config.attention_soft_cap)
        if self.attention.ragged:
            segments_S5, longest = segments.view(-1, 5), rows.max_segment_rows
            starts = {window: _kv_starts(kv_lens, rows.view, window) for window in windows}
            ragged = {
                window: AttentionMetadata(segments_S5, kv_lens, tables_BP, longest, starts[window], *scores)
                for window in windows
            }
            return DeviceRows(rows, tokens, slots, ragged, {}, None)
        masks = {window: _masks(rows, span, self.decoder.norm, window) for window in windows}
        in_order = slots[0].full and rows.query_rows == list(range(len(rows.query_rows)))
        return DeviceRows(rows, tokens, slots, {}, masks, None if in_order else table_2N[0])

    def _layers(self, views: list[DeviceRows], batch: ForwardBatch, tables_BP: Tensor) -> Tensor:
        """All layers up to the final norm [N, D]. Only the attention projections differ by view."""
        hidden_ND, delta_ND = self.decoder.embed(torch.cat([view.tokens for view in views])), None
        mlps = self.draft_weights.mlps if batch.draft_only else ()
        caches = zip(batch.cache.keys.unbind(0), batch.cache.values.unbind(0), strict=True)
        in_order = None if self.attention.ragged else _keys_in_order(batch, tables_BP)
        for index, (layer, cache) in enumerate(zip(self.decoder.decoder_layers, caches, strict=True)):
            copies = mlps[index] if mlps else None
            attention = _LayerAttention(self, layer, views, cache, in_order)
            hidden_ND, delta_ND = layer(hidden_ND, delta_ND, attention, self.kernels, copies)
        norm = self.decoder.config.norm_eps, self.decoder.config.norm_offset
        return self.kernels.add_norm(hidden_ND, delta_ND, self.decoder.norm, *norm)[1]

    def attend(self, view: DeviceRows, window: int | None, q_BAHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of the rows of a view [N, H * E]; padding rows are zero. One call per mask.

        keys, values: those of the cache [G, S, E] for ragged attention, else those of each sequence [B, G, span, E].
        """
        padding = len(view.tokens) - len(view.rows.positions)
        if self.attention.ragged:
            attention = self.kernels.attend(q_BAHE[0], keys, values, view.metadata[window])
        else:
            masks, config = view.masks[window], self.decoder.config
            blocks = q_BAHE.chunk(len(masks), dim=1) if len(masks) > 1 else [q_BAHE]
            scores = config.attention_scale, config.attention_soft_cap
            outputs = [
                self.attention.attend(q, keys, values, mask(), *scores) for q, mask in zip(blocks, masks, strict=True)
            ]
            attention = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).flatten(0, 1)
            if view.order is not None:
                attention = attention[view.order]
        return F.pad(attention, (0, 0, 0, padding)) if padding else attention


class _LayerAttention:
    """The attention of one layer, as the layer calls it."""

    def __init__(
        self,
        executor: EagerExecutor,
        layer: DecoderLayer,
        views: list[DeviceRows],
        cache: tuple[Tensor, Tensor],
        in_order: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._executor, self._layer, self._views, self._cache = executor, layer, views, cache
        self._in_order = in_order

    def __call__(self, normed_ND: Tensor) -> Tensor:
        """The keys of all views are written before any row attends: blocks attend to AR rows of the same pass."""
        layer, kernels, views = self._layer, self._executor.kernels, self._views
        queries, kind = [], layer.kind
        for view, x_ND in zip(views, normed_ND.split([len(view.tokens) for view in views]), strict=True):
            projections = layer.view(view.rows.view)
            qkv = projections.qkv(x_ND)
            mapping = view.mappings[kind.rope]
            queries.append(kernels.rope_and_cache_write(qkv, projections.norms, mapping, *self._cache))
        keys, values = self._cache if self._in_order is None else map(self._in_order, self._cache)
        deltas = [
            layer.view(view.rows.view).o(self._executor.attend(view, kind.window, q_BAHE, keys, values))
            for view, q_BAHE in zip(views, queries, strict=True)
        ]
        return deltas[0] if len(deltas) == 1 else torch.cat(deltas)


def _kv_starts(kv_lens_N: Tensor, view: ViewName, window: int | None) -> Tensor | None:
    """`first_keys` on the device."""
    return None if window is None else (kv_lens_N + (view == "diffusion") - window).clamp(min=0)


def _keys_in_order(batch: ForwardBatch, tables_BP: Tensor) -> Callable[[Tensor], Tensor]:
    """For attention kernels that take a mask: a function from the keys (or values) of a layer [G, S, E] to those of
    each sequence in order [B, G, span, E]. A single sequence whose pages follow one another is read in place."""
    (first, *others), *more = batch.block_tables
    start = first * PAGE
    if not more and others == list(range(first + 1, first + 1 + len(others))):
        return lambda stored_GSE: stored_GSE[None, :, start : start + batch.span]

    def gathered(stored_GSE: Tensor) -> Tensor:
        pages_GBTE = stored_GSE.unflatten(1, (-1, PAGE))[:, tables_BP].flatten(2, 3)
        return pages_GBTE[:, :, : batch.span].transpose(0, 1)

    return gathered


def _masks(rows: ViewRows, span: int, like: Tensor, window: int | None) -> list[Callable[[], Tensor]]:
    """The masks of a view: one for all its AR rows, or one for the n-th blocks of all sequences."""
    sequences, height = rows.query_shape
    width = rows.max_segment_rows
    if rows.view == "ar":
        lengths = [rows.kv_lens[segment.first_row] - 1 for segment in rows.segments]
        return [partial(causal_bias, lengths, width, height, span, like, window)]
    kv_lens = [[1] * sequences for _ in range(height // width)]  # 1 where a block is missing: never read, not NaN
    own = [[(0, 0)] * sequences for _ in range(height // width)]
    blocks = [0] * sequences
    for segment in rows.segments:
        block = blocks[segment.sequence]
        kv_lens[block][segment.sequence] = rows.kv_lens[segment.first_row]
        own[block][segment.sequence] = segment.own_start, segment.own_stop
        blocks[segment.sequence] += 1
    return [
        partial(block_bias, lens, slots, width, span, like, window) for lens, slots in zip(kv_lens, own, strict=True)
    ]
