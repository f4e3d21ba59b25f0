"""A whole pass in one call of `c/forward.h`: the same kernels as in separate calls, hence the same bits.

The eager executor is its reference implementation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from orthrus.backends.interface import AttentionChoice, Kernels
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.native.linears import NativeGroupedLinear, NativeInt8Linear, NativeLinear
from orthrus.backends.select import DraftWeights
from orthrus.batch import ForwardBatch, ViewRows
from orthrus.model.decoder import Decoder
from orthrus.model.layers import Linear
from orthrus.runner.executor import PassResult

_INTEGER, _INTEGER_BYTES, _POINTER = ctypes.c_int64, 8, ctypes.c_void_p
VIEWS = ("ar", "diffusion")
FORMS = (NativeLinear, NativeInt8Linear, NativeGroupedLinear)
PHASES = ("norms", "qkv", "rope and cache write", "attention", "o", "gate_up", "down", "head")
"""What `NativeForward` measures the time of, in order."""


class NativeForward:
    """One decoder as a table of addresses, for passes that only draft (`draft_only`) or for all others.

    Weights must stay where they are. Safe for many threads: they take turns at its one workspace.
    """

    def __init__(
        self, decoder: Decoder, kernels: NativeKernels, draft_weights: DraftWeights, *, draft_only: bool
    ) -> None:
        config, library = decoder.config, kernels.library
        self._run, self._bytes = library.forward, library.forward_workspace_bytes
        self._run.argtypes, self._run.restype = ((_POINTER,) * 11 + (ctypes.c_float,)), None
        self._bytes.restype = _INTEGER
        self._embedding, self._norm, self._eps = decoder.embedding, decoder.norm, config.norm_eps
        self._rope, self._vocabulary = decoder.rope, config.vocab_size
        self._shape = config.hidden_size, config.intermediate_size, config.heads, config.kv_heads, config.head_dim
        rows = []
        for index, layer in enumerate(decoder.decoder_layers):
            views = [layer.ar, layer.diffusion or layer.ar]
            norms = [_address(norm) for view in views for norm in (view.q_norm, view.k_norm)]
            copies = draft_weights.mlps[index] if draft_only and draft_weights.mlps else None
            maps = [linear for view in views for linear in (view.qkv, view.o)]
            maps += copies or (layer.gate_up, layer.down)
            rows += [layer.attention_norm.data_ptr(), layer.mlp_norm.data_ptr(), *norms]
            rows += [number for linear in maps for number in _map(linear)]
        rows += _map((draft_only and draft_weights.head) or decoder.head)
        self._table, self._layers = torch.tensor(rows), config.layers
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
        clocks = (ctypes.c_double * len(PHASES))()
        result = self._call(batch, clocks)
        for name, spent in zip(PHASES, clocks, strict=True):
            seconds[name] = seconds.get(name, 0.0) + spent
        return result

    def _call(self, batch: ForwardBatch, clocks: ctypes.Array[ctypes.c_double] | None) -> PassResult:
        cos_TE, sin_TE = self._rope.tables(max(position for rows in batch.views for position in rows.positions))
        shared = (self._embedding, cos_TE, sin_TE, self._norm)
        table, integers = _tables(batch.views)
        keys, values = batch.cache.storage
        layer, sequence, head, _, _ = keys.stride()
        sizes = (_INTEGER * 14)(
            self._layers, len(batch.views), sum(len(rows.tokens) for rows in batch.views), len(batch.logit_rows),
            batch.num_logits, *self._shape, sequence, head, layer, torch.get_num_threads(),
        )  # fmt: skip
        out_PD = self._embedding.new_empty(len(batch.logit_rows), self._embedding.shape[1])
        logits_LV, needed = self._embedding.new_empty(batch.num_logits, self._vocabulary), self._bytes(sizes)
        with self._lock:  # the call releases the GIL
            if len(self._workspace) < needed:
                self._workspace = torch.empty(needed, dtype=torch.uint8)
            self._run(
                self._table.data_ptr(), _integers([tensor.data_ptr() for tensor in shared]), table,
                _integers(batch.logit_rows), keys.data_ptr(), values.data_ptr(), out_PD.data_ptr(),
                logits_LV.data_ptr(), self._workspace.data_ptr(), clocks, sizes, self._eps,
            )  # fmt: skip
        del integers  # what the table points at
        return PassResult(logits_LV, out_PD[batch.num_logits :])


def supported(decoder: Decoder, kernels: Kernels, attention: AttentionChoice) -> bool:
    """Whether every kernel of a packed decoder has its place in `NativeForward`."""
    if not isinstance(kernels, NativeKernels) or not kernels.library.has_forward() or not attention.ragged:
        return False
    forms = all(
        isinstance(linear, FORMS) and linear.rule.exact and linear.rule.multiple == 1
        for linear in decoder.linears().values()
    )
    return forms and decoder.config.intermediate_size % 32 == 0  # threads take both halves of gate_up in whole panels


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (_INTEGER * len(values))(*values)


def _tables(views: Sequence[ViewRows]) -> tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_int64]]:
    """The table of the views, and the integers whose addresses it holds."""
    flat: list[int] = []
    starts = []
    for rows in views:
        for values in rows.integers:
            starts.append(len(flat))
            flat += values
    integers = _integers(flat)
    where = iter(ctypes.addressof(integers) + _INTEGER_BYTES * start for start in starts)
    table = []
    for rows in views:
        tokens, mapping, positions, segments, kv_lens = (next(where) for _ in range(5))
        counts = len(rows.tokens), len(rows.positions)
        table += [VIEWS.index(rows.view), *counts, tokens, mapping, positions, segments, len(rows.segments), kv_lens]
    return _integers(table), integers


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _map(linear: Linear) -> list[int]:
    """A row of the table: weights, bias, scales, shifts, inputs, outputs, how they are stored."""
    assert isinstance(linear, FORMS)
    outputs, inputs = linear.shape
    scales = [0, 0]
    if isinstance(linear, NativeInt8Linear):
        scales = [linear.scales_O.data_ptr(), linear.shifts_O.data_ptr()]
    return [linear.packed.data_ptr(), _address(linear.bias), *scales, inputs, outputs, linear.format]
