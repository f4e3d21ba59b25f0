"""A whole pass in one call of `c/forward.h`: the same kernels as in separate calls, hence the same bits.

The eager executor is its reference implementation.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, count
from threading import Lock
from weakref import ref

import torch
from torch import Tensor

from orthrus.backends.interface import MAX_ROWS, AttentionChoice, Kernels, RowRule
from orthrus.backends.native import structs
from orthrus.backends.native.embedding import table_of
from orthrus.backends.native.kernels import NativeKernels, cache_of
from orthrus.backends.native.linears import NativeGroupedLinear, NativeInt8Linear, NativeLinear, weights_of
from orthrus.backends.select import DraftWeights
from orthrus.batch import ForwardBatch
from orthrus.cache import KVCache
from orthrus.decoder_config import ACTIVATIONS, DecoderConfig
from orthrus.masks import first_keys
from orthrus.model.decoder import Decoder
from orthrus.model.layers import DecoderLayer
from orthrus.model.linear import Linear
from orthrus.model.mlp import MLP
from orthrus.runner.executor import PassResult
from orthrus.torch_threads import kernel_threads

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p
FORMS = (NativeLinear, NativeInt8Linear, NativeGroupedLinear)
PHASES = ("norms", "qkv", "rope and cache write", "attention", "o", "gate_up", "down", "head")
"""What `NativeForward` measures the time of, in order."""


class _Angles:
    """The rotations of the positions up to `last`, for each frequency scale: addresses of cosines and of sines."""

    def __init__(self, last: int, tables: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.last, self._kept = last, tables
        self.cos, self.sin = (_pointers([pair[part].data_ptr() for pair in tables]) for part in range(2))


class NativeForward:
    """One decoder as the structs that C reads, for passes that only draft (`draft_only`) or for all others.

    Weights must stay where they are. Safe for many threads: they take turns at its one workspace.
    """

    def __init__(
        self, decoder: Decoder, kernels: NativeKernels, draft_weights: DraftWeights, *, draft_only: bool
    ) -> None:
        config, library = decoder.config, kernels.library
        model, batch = ctypes.POINTER(structs.ModelWeights), ctypes.POINTER(structs.ForwardBatch)
        self._forward, self._workspace_bytes = library.forward, library.forward_workspace_bytes
        self._forward.argtypes, self._forward.restype = (model, batch, *(_POINTER,) * 4, _INTEGER), None
        self._workspace_bytes.argtypes, self._workspace_bytes.restype = (model, _INTEGER, _INTEGER), _INTEGER
        self._decoder, self._draft_only = decoder, draft_only
        copies = self._copies = draft_weights if draft_only else DraftWeights()  # C holds the addresses alone
        head = copies.head or decoder.head
        self._outputs = head.shape[0]
        self._layers = (structs.LayerWeights * config.layers)()
        for index, layer in enumerate(decoder.decoder_layers):
            mlp = copies.mlps[index] if copies.mlps else None
            assert isinstance(layer.mlp, MLP)
            place = config.windows.index(layer.kind.window)
            self._layers[index] = _layer(layer, place, *(mlp or (layer.mlp.gate_up, layer.mlp.down)))
        self._model = structs.ModelWeights(
            table_of(decoder.embedding, config.hidden_size, decoder.dtype), decoder.norm.weight.data_ptr(),
            ctypes.addressof(self._layers),
            _linear(head), config.layers, config.hidden_size, config.intermediate_size,
            config.heads, config.kv_heads, config.head_dim, ACTIVATIONS.index(config.activation), config.norm_eps,
            config.norm_offset, decoder.embedding_scale, config.residual_scale,
        )  # fmt: skip
        self._ropes, self._angles, self._capped = list(decoder.ropes), _Angles(-1, []), decoder.capped
        self._cache: tuple[Callable[[], KVCache | None], structs.KVCache, int] = (lambda: None), structs.KVCache(), 0
        self._workspace, self._lock = torch.empty(0, dtype=torch.uint8), Lock()

    def free_workspace(self) -> None:
        """Free the workspace; the next pass allocates its own."""
        with self._lock:
            self._workspace = torch.empty(0, dtype=torch.uint8)

    def run(self, batch: ForwardBatch) -> PassResult:
        """See `Executor`."""
        return self._call(batch, None)

    def profile(self, batch: ForwardBatch, seconds: dict[str, float]) -> PassResult:
        """The same, adding the seconds of each of `PHASES` to `seconds`."""
        phase_seconds = (ctypes.c_double * len(PHASES))()
        result = self._call(batch, phase_seconds)
        for name, spent in zip(PHASES, phase_seconds, strict=True):
            seconds[name] = seconds.get(name, 0.0) + spent
        return result

    def _call(self, batch: ForwardBatch, phase_seconds: ctypes.Array[ctypes.c_double] | None) -> PassResult:
        angles = self._angles_up_to(max(max(rows.positions) for rows in batch.views))
        integers, addresses = _integers(batch.integers)
        views, kept = _views(batch, addresses, self._decoder.config)
        rows, threads = sum(view.padded_rows for view in views), kernel_threads()
        counts = len(views), rows, len(batch.logit_rows), batch.num_logits
        cache, layer_stride = self._struct_of(batch.cache)
        pass_batch = structs.ForwardBatch(
            ctypes.addressof(views), addresses[-1], *counts, ctypes.addressof(angles.cos), ctypes.addressof(angles.sin),
            cache, layer_stride,
        )  # fmt: skip
        dtype = self._decoder.dtype
        hidden_PD = torch.empty(len(batch.logit_rows), self._decoder.config.hidden_size, dtype=dtype)
        logits = torch.empty(batch.num_logits, self._outputs, dtype=dtype)
        needed = self._workspace_bytes(self._model, rows, threads)
        with self._lock:  # the call releases the GIL
            if len(self._workspace) < needed:
                self._workspace = torch.empty(needed, dtype=torch.uint8)
            self._forward(
                self._model, pass_batch, hidden_PD.data_ptr(), logits.data_ptr(), self._workspace.data_ptr(),
                phase_seconds, threads,
            )  # fmt: skip
        del integers, views, kept, angles  # the structs hold addresses only
        logits = self._capped(logits)
        return PassResult(self._decoder.over_vocabulary(logits) if self._draft_only else logits, hidden_PD)

    def _angles_up_to(self, position: int) -> _Angles:
        """The rotations of positions up to this one. They are made again where a table has grown."""
        angles = self._angles
        if position > angles.last:
            tables = [rope.tables(position) for rope in self._ropes]
            self._angles = angles = _Angles(min(len(cos) for cos, _ in tables) - 1, tables)
        return angles

    def _struct_of(self, cache: KVCache) -> tuple[structs.KVCache, int]:
        """A cache as C reads it, and how far apart its layers are."""
        known = self._cache
        if known[0]() is not cache:
            known = self._cache = ref(cache), cache_of(cache.keys, cache.values), cache.keys.stride(0)
        return known[1:]


def supported(decoder: Decoder, kernels: Kernels, attention: AttentionChoice) -> bool:
    """Whether every kernel of a packed decoder has its place in `NativeForward`."""
    if not isinstance(kernels, NativeKernels) or not attention.ragged:
        return False
    if kernels.lacking(decoder.config):
        return False
    forms = all(
        isinstance(linear, FORMS) and linear.rule == RowRule(1, MAX_ROWS) for linear in decoder.linears().values()
    )
    return forms and decoder.config.intermediate_size % 32 == 0  # threads take both halves of gate_up in whole panels


def _integers(lists: Sequence[Sequence[int]]) -> tuple[array[int], list[int]]:
    """Lists of integers one after another as C reads them, and the address of each."""
    integers = array("q", [*chain.from_iterable(lists)])
    starts = accumulate([integers.itemsize * len(values) for values in lists], initial=integers.buffer_info()[0])
    return integers, [*starts][: len(lists)]


def _views(
    batch: ForwardBatch, addresses: Sequence[int], config: DecoderConfig
) -> tuple[ctypes.Array[structs.ViewRows], list[object]]:
    """The rows of each view, with the addresses of `ForwardBatch.integers`; and arrays to keep during the pass."""
    views, (tables, paths) = [], addresses[-3:-1]
    kept: list[object] = []
    scores = None, config.attention_scale or 0.0, config.attention_soft_cap or 0.0
    for rows, start in zip(batch.views, count(0, 6), strict=False):
        tokens, mapping, positions, segments, kv_lens, row_paths = addresses[start : start + 6]
        columns = len(batch.block_tables[0])
        trees = (row_paths, paths, len(batch.path_tables[0])) if rows.row_paths else (None, None, 0)
        attention = structs.AttentionMetadata(segments, len(rows.segments), kv_lens, tables, columns, *scores, *trees)
        starts = [
            None if window is None else array("q", first_keys(rows.kv_lens, rows.view, window))
            for window in config.windows
        ]
        pointers = _pointers([None if own is None else own.buffer_info()[0] for own in starts])
        kept += [starts, pointers]
        sizes, places = (len(rows.tokens), len(rows.positions)), (tokens, mapping, positions, attention)
        views.append(structs.ViewRows(structs.VIEWS.index(rows.view), *sizes, *places, ctypes.addressof(pointers)))
    return (structs.ViewRows * len(views))(*views), kept


def _pointers(addresses: Sequence[int | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (_POINTER * len(addresses))(*addresses)


def _layer(layer: DecoderLayer, window: int, gate_up: Linear, down: Linear) -> structs.LayerWeights:
    views = [layer.ar, layer.diffusion or layer.ar]
    norms = [structs.HeadNorms(_address(view.q_norm), _address(view.k_norm)) for view in views]
    attention = [structs.AttentionWeights(_linear(view.qkv), _linear(view.o)) for view in views]
    around = layer.attention_norm, layer.mlp_norm, layer.post_attention_norm, layer.post_mlp_norm
    return structs.LayerWeights(
        *(None if norm is None else norm.weight.data_ptr() for norm in around), window, layer.kind.rope,
        (structs.HeadNorms * len(views))(*norms), (structs.AttentionWeights * len(views))(*attention),
        _linear(gate_up), _linear(down),
    )  # fmt: skip


def _linear(linear: Linear) -> structs.LinearWeights:
    assert isinstance(linear, FORMS)
    return weights_of(linear)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
