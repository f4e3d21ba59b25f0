"""The eager executor calls kernel after kernel from Python. It is the reference implementation, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from orthrus.runner.tails import Tail, in_order, tails_of


@dataclass(frozen=True)
class DeviceRows:
    """The rows of one view on the device.

    mappings: one per rotary table of the decoder. metadata, masks: by the window of a layer. masks: for attention
    kernels that take a mask, one function per chunk of the rectangle of queries, which makes its mask. Where a pass has
    several, each is made for each call, so that memory does not grow with their number. order: where each row is in
    that rectangle; None if the rectangle is the rows as they are. tails: those of trees, one per mask.
    """

    rows: ViewRows
    tokens: Tensor
    mappings: list[SlotMapping]
    metadata: dict[int | None, AttentionMetadata]
    masks: dict[int | None, list[Callable[[], Tensor]]]
    order: Tensor | None
    tails: list[Tail]


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
        *parts, tables, paths, logit_rows = integers.split([len(values) for values in batch.integers])
        tables_BP = tables.view(len(batch.block_tables), -1)
        paths_PC = paths.view(len(batch.path_tables), -1) if batch.path_tables else None
        per_view = len(parts) // len(batch.views)
        views = [
            self._on_device(rows, parts[n * per_view : (n + 1) * per_view], (tables_BP, paths_PC), batch)
            for n, rows in enumerate(batch.views)
        ]
        if sum(len(own) for view in views for own in view.masks.values()) == 1:
            ((window, (make,)),) = views[0].masks.items()
            mask = make()
            views = [replace(views[0], masks={window: [lambda: mask]})]
        hidden_PD = self._layers(views, batch, tables_BP)[logit_rows]
        head = (batch.draft_only and self.draft_weights.head) or self.decoder.head
        logits = self.decoder.capped(head(hidden_PD[: batch.num_logits]))
        return PassResult(self.decoder.over_vocabulary(logits) if batch.draft_only else logits, hidden_PD)

    def _on_device(
        self, rows: ViewRows, parts: Sequence[Tensor], tables: tuple[Tensor, Tensor | None], batch: ForwardBatch
    ) -> DeviceRows:
        tokens, mapping, positions, segments, kv_lens, row_paths = parts
        config, table_2N = self.decoder.config, mapping.view(2, -1)
        angles = [rope.rows(positions, max(rows.positions)) for rope in self.decoder.ropes]
        norm = config.norm_eps, config.norm_offset, config.qk_norm_last
        slots = [SlotMapping(table_2N, cos, sin, rows.query_shape, *norm) for cos, sin in angles]
        windows, scores = config.windows, (config.attention_scale, config.attention_soft_cap)
        if self.attention.ragged:
            tables_BP, paths_PC = tables
            segments_S5, longest = segments.view(-1, 5), rows.max_segment_rows
            starts = {window: _kv_starts(kv_lens, rows.view, window) for window in windows}
            trees = (row_paths, paths_PC) if rows.row_paths else (None, None)
            ragged = {
                window: AttentionMetadata(segments_S5, kv_lens, tables_BP, longest, starts[window], *scores, *trees)
                for window in windows
            }
            return DeviceRows(rows, tokens, slots, ragged, {}, None, [])
        tails = tails_of(rows, batch)
        masks = {window: _masks(rows, len(tails), batch.span, self.decoder.norm.weight, window) for window in windows}
        rectangle = slots[0].full and rows.query_rows == list(range(len(rows.query_rows)))
        return DeviceRows(rows, tokens, slots, {}, masks, None if rectangle else table_2N[0], tails)

    def _layers(self, views: list[DeviceRows], batch: ForwardBatch, tables_BP: Tensor) -> Tensor:
        """All layers up to the final norm [N, D]. Only the attention projections differ by view."""
        hidden_ND, delta_ND = self.decoder.embed(torch.cat([view.tokens for view in views])), None
        mlps = self.draft_weights.mlps if batch.draft_only else ()
        caches = zip(batch.cache.keys.unbind(0), batch.cache.values.unbind(0), strict=True)
        order = _keys_in_order(batch, tables_BP)
        for index, (layer, cache) in enumerate(zip(self.decoder.decoder_layers, caches, strict=True)):
            copies = mlps[index] if mlps else None
            attention = _LayerAttention(self, layer, views, _LayerCache(cache, order))
            hidden_ND, delta_ND = layer(hidden_ND, delta_ND, attention, self.kernels, copies)
        return self.decoder.norm.of_sum(hidden_ND, delta_ND, self.kernels)[1]

    def attend(self, view: DeviceRows, layer: DecoderLayer, q_BAHE: Tensor, cache: _LayerCache) -> Tensor:
        """Attention of the rows of a view [N, H * E]; padding rows are zero. One call per mask and `max_rows` rows."""
        window = layer.kind.window
        padding = len(view.tokens) - len(view.rows.positions)
        if self.attention.ragged:
            attention = self.kernels.attend(q_BAHE[0], *cache.stored, view.metadata[window])
        else:
            masks, config = view.masks[window], self.decoder.config
            blocks = q_BAHE.chunk(len(masks), dim=1) if len(masks) > 1 else [q_BAHE]
            scores, outputs = (config.attention_scale, config.attention_soft_cap, layer.sinks), []
            tails: Sequence[Tail | None] = view.tails or [None] * len(masks)
            for q, mask, tail in zip(blocks, masks, tails, strict=True):
                with cache.ordered(tail) as (keys, values):
                    bias, rows = mask(), self.attention.rule.max_rows
                    for start in range(0, q.shape[1], rows):
                        part = slice(start, start + rows)
                        outputs.append(self.attention.attend(q[:, part], keys, values, bias[..., part, :], *scores))
            attention = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).flatten(0, 1)
            if view.order is not None:
                attention = attention[view.order]
        return F.pad(attention, (0, 0, 0, padding)) if padding else attention


class _LayerCache:
    """The keys and values of one layer [G, S, E], and as kernels that take a mask read them: those of each sequence in
    order [B, G, span, E]."""

    def __init__(self, stored: tuple[Tensor, Tensor], order: Callable[[Tensor], Tensor]) -> None:
        self.stored, self._order = stored, order
        self._ordered: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def ordered(self, tail: Tail | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Both in order, with the keys of `tail` in place. Without a tail they are put in order once."""
        if tail is not None:
            with in_order(tail, *self.stored):
                yield self._in_order()
        else:
            self._ordered = self._ordered or self._in_order()
            yield self._ordered

    def _in_order(self) -> tuple[Tensor, Tensor]:
        keys, values = self.stored
        return self._order(keys), self._order(values)


class _LayerAttention:
    """The attention of one layer, as the layer calls it."""

    def __init__(
        self,
        executor: EagerExecutor,
        layer: DecoderLayer,
        views: list[DeviceRows],
        cache: _LayerCache,
    ) -> None:
        self._executor, self._layer, self._views, self._cache = executor, layer, views, cache

    def __call__(self, normed_ND: Tensor) -> Tensor:
        """The keys of all views are written before any row attends: blocks attend to AR rows of the same pass."""
        layer, kernels, views = self._layer, self._executor.kernels, self._views
        queries, kind = [], layer.kind
        for view, x_ND in zip(views, normed_ND.split([len(view.tokens) for view in views]), strict=True):
            projections = layer.view(view.rows.view)
            qkv = projections.project(x_ND)
            mapping = view.mappings[kind.rope]
            queries.append(kernels.rope_and_cache_write(qkv, projections.norms, mapping, *self._cache.stored))
        deltas = [
            layer.view(view.rows.view).o(self._executor.attend(view, layer, q_BAHE, self._cache))
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


def _masks(rows: ViewRows, tails: int, span: int, like: Tensor, window: int | None) -> list[Callable[[], Tensor]]:
    """The masks of a view: one for its AR rows, as often as they have `tails`, or one for the n-th blocks of all
    sequences."""
    sequences, height = rows.query_shape
    width = rows.max_segment_rows
    if rows.view == "ar":
        lengths = [rows.kv_lens[segment.first_row] - 1 for segment in rows.segments]
        longest = max(
            max(rows.kv_lens[s.first_row :][: s.rows]) - n for s, n in zip(rows.segments, lengths, strict=True)
        )
        calls = max(1, tails)
        return [partial(causal_bias, lengths, longest, height // calls, span, like, window)] * calls
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
