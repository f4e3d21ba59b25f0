"""Kernels in C: the work between matrix products, and the products themselves.

Between two products a pass runs dozens of tiny operations, each of which finds its code and data pushed out of the
caches by the weights that streamed through. Fusing them is worth a quarter of a pass at batch 1. Where there is no C
compiler the reference implementations in `torch.py` run instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from orthrus.backends.interface import MAX_ROWS, ExecutableLinear, LinearForm, RowRule
from orthrus.backends.native import build
from orthrus.backends.native.linears import (
    PAIR,
    PANEL_OUTPUTS,
    TILE_OUTPUTS,
    BlockLinear,
    NativeGroupedLinear,
    NativeInt8Linear,
    PanelLinear,
    TiledLinear,
)
from orthrus.backends.torch import LANES, TorchKernels
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.model.layers import Linear
from orthrus.quantization import GROUP, Blocks

Kernel = Callable[..., Any] | None
_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativeKernels(TorchKernels):
    """The C kernels for one dtype on the CPU."""

    name = "native C"

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.library, self.build = library, Path(library._name).stem
        library.has_tiles()
        self._rms_norm = _bound(library.rms_norm, *(_POINTER,) * 4, _INTEGER, _INTEGER, _FLOAT)
        self._place = _bound(library.place, *(_POINTER,) * 10, _INTEGER, _FLOAT)
        self._gate = _bound(library.gate, _POINTER, _POINTER, _INTEGER, _INTEGER)
        self._top1_probability = _bound(library.largest_probability, _POINTER, _POINTER, *(_INTEGER,) * 3)
        self._beside = _bound(library.beside, _INTEGER, gives=_INTEGER)
        self._linear: Kernel = None
        self._attend: Kernel = None
        self._linear_blocks: Kernel = None
        self._linear_int8: Kernel = None
        self._linear_grouped: Kernel = None
        if self._beside(GROUP):
            self._linear = _bound(library.linear, *(_POINTER,) * 4, *(_INTEGER,) * 4)
        if library.has_attention():
            self._attend = _bound(library.attend, *(_POINTER,) * 5, _INTEGER, _POINTER, _POINTER, _INTEGER)
        if library.has_blocks():
            self._linear_blocks = _bound(library.linear_blocks, *(_POINTER,) * 6)
        if library.has_linear_int8():
            self._linear_int8 = _bound(library.linear_int8, *(_POINTER,) * 9)
        if library.has_linear_grouped():
            self._linear_grouped = _bound(library.linear_grouped, *(_POINTER,) * 8)

    def packed(self, plain: Linear) -> Iterator[LinearForm]:
        """The products of `native.c` first, where the processor has them and the shape divides, then torch's."""
        beside = self._beside(plain.shape[1])
        if self._linear_blocks and plain.blocks is not None and self._divides(plain):
            yield partial(BlockLinear, plain, self._linear_blocks, beside, plain.blocks)
        form = TiledLinear if plain.weight.dtype == torch.bfloat16 else PanelLinear
        if self._linear and beside and plain.shape[0] % form.outputs == 0:
            yield partial(form, plain, self._linear, beside)
        yield from super().packed(plain)

    def low_precision(self, plain: Linear, *, view: bool = False) -> ExecutableLinear | None:
        """In int8, whose arithmetic is the cheapest, where the processor has the product and the shape divides; the
        view's weights in four bits. None, with tiles, of weights that are in groups anyway: a copy of them costs more
        than their arithmetic."""
        if not view and plain.blocks is not None and self._beside(plain.shape[1]) == PAIR and self._divides(plain):
            return None
        blocks = plain.blocks
        if view and blocks is None and self._linear_grouped and self._divides(plain):
            blocks = Blocks.rounded(plain.weight.detach())
        form = self._grouped(plain, blocks) or self._int8(plain)
        if form is None:
            return None
        made = form()
        made.rule = RowRule(1, MAX_ROWS)
        return made

    @staticmethod
    def _divides(plain: Linear) -> bool:
        return plain.shape[0] % PANEL_OUTPUTS == 0 and plain.shape[1] % GROUP == 0

    def quantised(self, plain: Linear) -> Iterator[LinearForm]:
        """The product of `native.c` first, where the processor has it and the shape divides."""
        in_groups = plain.blocks is not None and plain.blocks.four_bits
        form = self._grouped(plain, plain.blocks) if in_groups else self._int8(plain)
        if form is not None:
            yield form
        yield from super().quantised(plain)

    def _grouped(self, plain: Linear, blocks: Blocks | None) -> LinearForm | None:
        if self._linear_grouped is None or blocks is None or not blocks.four_bits or not self._divides(plain):
            return None
        return partial(NativeGroupedLinear, plain, self._linear_grouped, blocks)

    def _int8(self, plain: Linear) -> LinearForm | None:
        if self._linear_int8 is None or any(size % TILE_OUTPUTS for size in plain.shape):
            return None
        return partial(NativeInt8Linear, plain, self._linear_int8)

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `Kernels`, as for all below."""
        return self._norm(x_ND, None, weight_D, eps)

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if delta_ND is None:
            return hidden_ND, self._norm(hidden_ND, None, weight_D, eps)
        assert delta_ND.is_contiguous() and delta_ND.shape == hidden_ND.shape
        return hidden_ND, self._norm(hidden_ND, delta_ND.data_ptr(), weight_D, eps)

    def _norm(self, x_ND: Tensor, delta: int | None, weight_D: Tensor, eps: float) -> Tensor:
        assert x_ND.is_contiguous()
        out = torch.empty_like(x_ND)
        self._rms_norm(x_ND.data_ptr(), delta, weight_D.data_ptr(), out.data_ptr(), *x_ND.shape, eps)
        return out

    def rope_and_cache_write(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        mapping: SlotMapping,
        keys_BGTE: Tensor,
        values_BGTE: Tensor,
    ) -> Tensor:
        """See `Kernels`."""
        assert qkv_NF.is_contiguous()
        (B, A), N = mapping.query_shape, mapping.table_3N.shape[1]
        _, G, _, E = keys_BGTE.shape
        H = qkv_NF.shape[1] // E - 2 * G
        q = qkv_NF.new_empty(B, A, H, E) if mapping.full else qkv_NF.new_zeros(B, A, H, E)
        sizes = (_INTEGER * 5)(H, G, E, keys_BGTE.stride(0), keys_BGTE.stride(1))
        q_norm, k_norm = (n.data_ptr() for n in norms) if norms else (None, None)
        self._place(
            qkv_NF.data_ptr(), q_norm, k_norm, mapping.cos.data_ptr(), mapping.sin.data_ptr(),
            mapping.table_3N.data_ptr(),
            q.data_ptr(), keys_BGTE.data_ptr(), values_BGTE.data_ptr(), sizes, N, mapping.norm_eps,
        )  # fmt: skip
        return q

    def supports_ragged_attention(self, head_dim: int) -> bool:
        """See `Kernels`."""
        return self._attend is not None and head_dim % LANES == 0

    def attend(self, q_NHE: Tensor, keys_BGTE: Tensor, values_BGTE: Tensor, metadata: AttentionMetadata) -> Tensor:
        """See `Kernels`."""
        (N, H, E), G = q_NHE.shape, keys_BGTE.shape[1]
        assert self._attend is not None and q_NHE.is_contiguous() and keys_BGTE.stride(2) == E
        out = torch.empty_like(q_NHE)
        sizes = (_INTEGER * 5)(H, G, E, keys_BGTE.stride(0), keys_BGTE.stride(1))
        self._attend(
            q_NHE.data_ptr(), keys_BGTE.data_ptr(), values_BGTE.data_ptr(), out.data_ptr(),
            metadata.segments.data_ptr(),
            len(metadata.segments), metadata.kv_lens.data_ptr(), sizes, torch.get_num_threads(),
        )  # fmt: skip
        return out.view(N, H * E)

    def top1_probability(self, logits_RV: Tensor) -> Tensor:
        """See `Kernels`."""
        logits_RV, out_R = logits_RV.contiguous(), torch.empty(len(logits_RV))
        self._top1_probability(logits_RV.data_ptr(), out_R.data_ptr(), *logits_RV.shape, torch.get_num_threads())
        return out_R

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        """See `Kernels`."""
        assert gate_up_NF.is_contiguous()
        rows, size = len(gate_up_NF), gate_up_NF.shape[1] // 2
        out = gate_up_NF.new_empty(rows, size)
        self._gate(gate_up_NF.data_ptr(), out.data_ptr(), rows, size)
        return out


def _bound(function: Any, *takes: type, gives: type | None = None) -> Callable[..., Any]:
    """A function of the library that knows its types."""
    function.argtypes, function.restype = takes, gives
    return cast(Callable[..., Any], function)


def load(dtype: torch.dtype, cache_directory: Path) -> NativeKernels | None:
    """The kernels for `dtype`; None where they cannot be had."""
    with suppress(build.UnavailableError):
        return NativeKernels(build.library(dtype, cache_directory))
    return None
