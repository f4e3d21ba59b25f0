"""All layers of a pass in one call of `c/stack.h`: the same kernels as one by one, hence the same bits, without Python.

Its slow twin is the loop over layers in `Decoder`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orthrus.cache import CacheWindow
from orthrus.model.layout import Part
from orthrus.model.linears import Linear
from orthrus.model.native import NativeKernels
from orthrus.model.native_linears import NativeInt8Linear, NativeLinear

if TYPE_CHECKING:
    from orthrus.model.decoder import Decoder

_INTEGER, _POINTER = ctypes.c_int64, ctypes.c_void_p
VIEWS = ("ar", "diffusion")
WORKS = (
    "norms",
    "product qkv",
    "rotation and cache",
    "attention",
    "product o",
    "gated product",
    "product down",
)
"""What `Stack.clocked` counts seconds of, in order."""


class Stack:
    """The layers of one decoder as a table of addresses, for passes that only draft or for others. Weights must stay
    where they are."""

    def __init__(self, decoder: Decoder, library: ctypes.CDLL, *, drafting: bool) -> None:
        config = decoder.config
        self._run, self._bytes = library.stack, library.stack_bytes
        self._run.argtypes, self._run.restype = ((_POINTER,) * 10 + (ctypes.c_float,)), None
        self._bytes.restype = _INTEGER
        self._norm, self._eps = decoder.norm, config.norm_eps
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
            isinstance(linear, NativeLinear | NativeInt8Linear) and linear.rule.exact and linear.rule.multiple == 1
            for linear in decoder.linears().values()
        )
        even = decoder.config.intermediate_size % 32 == 0  # threads take both halves of the gate in whole panels
        return Stack(decoder, kernels.library, drafting=drafting) if forms and even else None

    def forget(self) -> None:
        """Give the workspace back; the next pass makes its own."""
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

    def run(self, parts: list[Part], hidden_ND: Tensor, cache: CacheWindow) -> Tensor:
        """Final hidden states [N, D] of all parts; their keys and values are left in the cache."""
        table = []
        for part in parts:
            places, sight = part.places, part.sight
            table += [
                VIEWS.index(part.view), len(part.tokens_N), places.table_3N.shape[1], places.table_3N.data_ptr(),
                places.cos.data_ptr(), places.sin.data_ptr(), sight.runs.data_ptr(), len(sight.runs),
                sight.seen_N.data_ptr(),
            ]  # fmt: skip
        keys, values = cache.storage
        layer, sequence, head, _, _ = keys.stride()
        threads = torch.get_num_threads()
        sizes = (_INTEGER * 12)(
            self._layers, len(parts), len(hidden_ND), *self._shape, sequence, head, layer, threads
        )  # fmt: skip
        out_ND, needed = torch.empty_like(hidden_ND), self._bytes(sizes)
        with self._lock:  # one workspace, and the call lets other Python threads run
            if len(self._memory) < needed:
                self._memory = torch.empty(needed, dtype=torch.uint8)
            self._run(
                self._table.data_ptr(), (_INTEGER * len(table))(*table), keys.data_ptr(), values.data_ptr(),
                hidden_ND.data_ptr(), self._norm.data_ptr(), out_ND.data_ptr(), self._memory.data_ptr(), self._clocks,
                sizes, self._eps,
            )  # fmt: skip
        return out_ND


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _map(linear: Linear) -> list[int]:
    """A row of the table: weights, bias, scales, shifts, inputs, outputs, how they are stored."""
    assert isinstance(linear, NativeLinear | NativeInt8Linear)
    outputs, inputs = linear.shape
    scales = [0, 0]
    if isinstance(linear, NativeInt8Linear):
        scales = [linear.scales_O.data_ptr(), linear.shifts_O.data_ptr()]
    return [linear.packed.data_ptr(), _address(linear.bias), *scales, inputs, outputs, linear.form]
