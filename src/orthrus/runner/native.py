"""A whole pass in one call of `c/stack.h`: the same kernels as one by one, hence the same bits, without Python between.

Its slow twin is the loop over layers in `Decoder`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orthrus.backends.linears import Linear
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.native.linears import NativeGroupedLinear, NativeInt8Linear, NativeLinear
from orthrus.cache import CacheWindow
from orthrus.runner.layout import Part

if TYPE_CHECKING:
    from orthrus.model.decoder import Decoder

_INTEGER, _INTEGER_BYTES, _POINTER = ctypes.c_int64, 8, ctypes.c_void_p
VIEWS = ("ar", "diffusion")
FORMS = (NativeLinear, NativeInt8Linear, NativeGroupedLinear)
WORKS = (
    "norms",
    "product qkv",
    "rotation and cache",
    "attention",
    "product o",
    "gated product",
    "product down",
    "head",
)
"""What `Stack.clocked` counts seconds of, in order."""


class Stack:
    """One decoder as a table of addresses, for passes that only draft or for others. Weights must stay where they
    are."""

    def __init__(self, decoder: Decoder, library: ctypes.CDLL, *, drafting: bool) -> None:
        config = decoder.config
        self._run, self._bytes = library.stack, library.stack_bytes
        self._run.argtypes, self._run.restype = ((_POINTER,) * 11 + (ctypes.c_float,)), None
        self._bytes.restype = _INTEGER
        self._embedding, self._norm, self._eps = decoder.embedding, decoder.norm, config.norm_eps
        self._rope, self._vocabulary = decoder.rope, config.vocab_size
        self._shape = config.hidden_size, config.intermediate_size, config.heads, config.kv_heads, config.head_dim
        rows = []
        for layer in decoder.stack:
            views = [layer.ar, layer.diffusion or layer.ar]
            norms = [
                norm.data_ptr() if norm is not None else 0 for view in views for norm in (view.q_norm, view.k_norm)
            ]
            maps = [*[linear for view in views for linear in (view.qkv, view.o)], *layer.mlp(drafting=drafting)]
            rows += [layer.attention_norm.data_ptr(), layer.mlp_norm.data_ptr(), *norms]
            rows += [number for linear in maps for number in _map(linear)]
        rows += _map(decoder.head_of(drafting=drafting))
        self._table, self._layers = torch.tensor(rows), len(decoder.stack)
        self._memory, self._lock = torch.empty(0, dtype=torch.uint8), Lock()
        self._clocks: ctypes.Array[ctypes.c_double] | None = None

    @staticmethod
    def of(decoder: Decoder, *, drafting: bool) -> Stack | None:
        """The stack of a prepared decoder whose kernels all have their place in it; None for others."""
        kernels, attention = decoder.kernels, decoder.attention
        if not isinstance(kernels, NativeKernels) or not kernels.library.has_stack() or not attention.sees:
            return None
        forms = all(
            isinstance(linear, FORMS) and linear.rule.exact and linear.rule.multiple == 1
            for linear in decoder.linears().values()
        )
        even = decoder.config.intermediate_size % 32 == 0  # threads take both halves of the gate in whole panels
        return Stack(decoder, kernels.library, drafting=drafting) if forms and even else None

    def forget(self) -> None:
        """Give the workspace back; the next pass makes its own."""
        with self._lock:
            self._memory = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def clocked(self, spent: dict[str, float]) -> Iterator[None]:
        """Add to `spent`, at the end, the seconds that passes took meanwhile, by kind of work."""
        self._clocks = (ctypes.c_double * len(WORKS))()
        try:
            yield
            for name, seconds in zip(WORKS, self._clocks, strict=True):
                spent[name] = spent.get(name, 0.0) + seconds
        finally:
            self._clocks = None

    def run(self, parts: list[Part], cache: CacheWindow, picked: Sequence[int], wanted: int) -> tuple[Tensor, Tensor]:
        """Rows of all parts, one after another: the logits [wanted, V] of the first of those `picked`, and the final
        hidden states [.., D] of the others. Keys and values of all are left in the cache."""
        cos_TE, sin_TE = self._rope.tables(max(position for part in parts for position in part.positions))
        shared = (self._embedding, cos_TE, sin_TE, self._norm)
        table, numbers = _numbers(parts)
        keys, values = cache.storage
        layer, sequence, head, _, _ = keys.stride()
        sizes = (_INTEGER * 14)(
            self._layers, len(parts), sum(len(part.tokens) for part in parts), len(picked), wanted, *self._shape,
            sequence, head, layer, torch.get_num_threads(),
        )  # fmt: skip
        out_PD = self._embedding.new_empty(len(picked), self._embedding.shape[1])
        logits_LV, needed = self._embedding.new_empty(wanted, self._vocabulary), self._bytes(sizes)
        with self._lock:  # one workspace, and the call lets other Python threads run
            if len(self._memory) < needed:
                self._memory = torch.empty(needed, dtype=torch.uint8)
            self._run(
                self._table.data_ptr(), _integers([tensor.data_ptr() for tensor in shared]), table, _integers(picked),
                keys.data_ptr(), values.data_ptr(), out_PD.data_ptr(), logits_LV.data_ptr(), self._memory.data_ptr(),
                self._clocks, sizes, self._eps,
            )  # fmt: skip
        del numbers  # what the table points at
        return logits_LV, out_PD[wanted:]


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (_INTEGER * len(values))(*values)


def _numbers(parts: list[Part]) -> tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_int64]]:
    """The table of the parts, and the numbers whose addresses it holds."""
    flat: list[int] = []
    starts = []
    for part in parts:
        for values in part.numbers:
            starts.append(len(flat))
            flat += values
    numbers = _integers(flat)
    where = iter(ctypes.addressof(numbers) + _INTEGER_BYTES * start for start in starts)
    table = []
    for part in parts:
        tokens, places, positions, runs, seen = (next(where) for _ in range(5))
        rows = len(part.tokens), len(part.positions)
        table += [VIEWS.index(part.view), *rows, tokens, places, positions, runs, len(part.runs), seen]
    return _integers(table), numbers


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _map(linear: Linear) -> list[int]:
    """A row of the table: weights, bias, scales, shifts, inputs, outputs, how they are stored."""
    assert isinstance(linear, FORMS)
    outputs, inputs = linear.shape
    scales = [0, 0]
    if isinstance(linear, NativeInt8Linear):
        scales = [linear.scales_O.data_ptr(), linear.shifts_O.data_ptr()]
    return [linear.packed.data_ptr(), _address(linear.bias), *scales, inputs, outputs, linear.form]
