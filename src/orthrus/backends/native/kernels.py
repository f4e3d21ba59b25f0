"""Kernels in C: the work between matrix products, and the products themselves.

Between two products a pass runs dozens of tiny operations, each of which finds its code and data pushed out of the
caches by the weights that streamed through. Fusing them is worth a quarter of a pass at batch 1. Where there is neither
a library built ahead nor a C compiler, the reference implementations in `torch.py` run instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.interface import MAX_ROWS, ExecutableLinear, LinearForm, RowRule
from orthrus.backends.native import build, compiler, structs
from orthrus.backends.native.draft_tree import NativeDraftTree
from orthrus.backends.native.linears import (
    PAIR,
    TILE_OUTPUTS,
    DequantLinear,
    NativeGroupedLinear,
    NativeInt8Linear,
    PanelLinear,
    TiledLinear,
)
from orthrus.backends.native.packing import PANEL_OUTPUTS, Packer
from orthrus.backends.native.sampling import NativeSampling
from orthrus.backends.torch import LANES, TorchKernels
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.decoder_config import DecoderConfig
from orthrus.drafters.tree import DraftTree
from orthrus.gumbel import RandomBits
from orthrus.model.linear import Linear
from orthrus.ngrams import Lookup
from orthrus.quantization import GROUP, FusedQuantized, GroupQuantized, Quantized, StoredMatrix, stored_matrices
from orthrus.torch_threads import kernel_threads

Kernel = Callable[..., Any]
_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_WEIGHTS, _QUANTIZED = ctypes.POINTER(structs.LinearWeights), ctypes.POINTER(structs.QuantizedRows)
_CACHE, _METADATA = ctypes.POINTER(structs.KVCache), ctypes.POINTER(structs.AttentionMetadata)


LACKING = (
    "LayerNorm", "q and k norms of whole rows", "q and k norms that differ by head",
    "q and k norms after rotary embeddings", "attention and MLP in parallel", "squared ReLU", "clamped SwiGLU",
    "MLP without gates", "attention sinks", "experts",
)  # fmt: skip
"""The features of models for which there is no code in C."""


class NativeKernels(TorchKernels):
    """The C kernels for one dtype on the CPU."""

    name = "native C"

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.library, self.path = library, Path(library._name)
        self.build = f"{self.path.stem}-{compiler.checksum(self.path)[:8]}"
        self._packer, self._sampling = Packer(library), NativeSampling(library)
        self._draft_tree = NativeDraftTree(library)
        library.has_amx()
        rope = (*(_POINTER,) * 2, _INTEGER, ctypes.POINTER(structs.RopeParams), _POINTER, _CACHE, _INTEGER)
        self._rms_norm = _bound(library.rms_norm, *(_POINTER,) * 4, _INTEGER, _INTEGER, _FLOAT, _FLOAT)
        self._rope_and_cache_write = _bound(library.rope_and_cache_write, *rope)
        gated = {"silu": library.silu_mul, "gelu_tanh": library.gelu_mul}
        self._gated = {name: _bound(own, _POINTER, _POINTER, _INTEGER, _INTEGER) for name, own in gated.items()}
        self._k_interleave = _bound(library.k_interleave, _INTEGER, gives=_INTEGER)
        self._attention = _bound(library.attention, *(_POINTER,) * 2, _INTEGER, _CACHE, _METADATA, _INTEGER)
        linear = (_POINTER, _WEIGHTS, _POINTER, _INTEGER)
        self._linear = _bound(library.linear, *linear, _INTEGER)
        self._linear_int8 = _bound(library.linear_int8, *linear, _QUANTIZED, _INTEGER)
        self._linear_codes = _bound(library.linear_codes, *linear, _QUANTIZED, _INTEGER)
        self._linear_dequant = _linear_dequant(library)

    @classmethod
    def lacking(cls, config: DecoderConfig) -> list[str]:
        """See `Kernels`."""
        return [feature for feature in config.features if feature in LACKING]

    def packed(self, plain: Linear) -> Iterator[LinearForm]:
        """The products of `native.c` first, where the shape divides, then torch's."""
        interleave = self._k_interleave(plain.shape[1])
        stored = plain.group_quantized
        if self._linear_dequant and stored is not None and _in_panels(plain.shape, stored):
            yield partial(DequantLinear, plain, self._linear_dequant, interleave, self._packer)
        form = TiledLinear if plain.dtype == torch.bfloat16 else PanelLinear
        if interleave and plain.shape[0] % form.outputs == 0:
            yield partial(form, plain, self._linear, interleave, self._packer)
        yield from super().packed(plain)

    def low_precision(self, plain: Linear, *, view: bool = False) -> ExecutableLinear | None:
        """Int8, or four bits for the view, where the shape is a multiple of the panel. None on AMX for weights in
        groups of four bits: there a copy saves arithmetic, but no time. Expanding those of more bits takes longer."""
        stored, on_tiles = plain.group_quantized, self._k_interleave(plain.shape[1]) == PAIR
        if not view and on_tiles and _all_in_groups_of_four_bits(stored) and _in_panels(plain.shape, stored):
            return None
        matrices = stored_matrices(stored)
        if view and stored is None and _in_panels(plain.shape):
            matrices = (GroupQuantized.rounded(plain.weight.detach()),)
        form = self._grouped(plain, matrices) or self._int8(plain)
        if form is None:
            return None
        made = form()
        made.rule = RowRule(1, MAX_ROWS)
        return made

    def kernel_of(self, form: type[ExecutableLinear]) -> Kernel | None:
        """The function that runs a form of `native.linears`."""
        own = {DequantLinear: self._linear_dequant, NativeInt8Linear: self._linear_int8}
        return self._linear_codes if form is NativeGroupedLinear else own.get(form, self._linear)

    def quantised(self, plain: Linear) -> Iterator[LinearForm]:
        """The product of `native.c` first, where the shape divides."""
        matrices = stored_matrices(plain.group_quantized)
        form = self._grouped(plain, matrices) if matrices else self._int8(plain)
        if form is not None:
            yield form
        yield from super().quantised(plain)

    def multiplies_codes(self, plain: Linear) -> bool:
        """See `Kernels`."""
        return self._grouped(plain, stored_matrices(plain.group_quantized)) is not None

    def _grouped(self, plain: Linear, matrices: Sequence[StoredMatrix]) -> LinearForm | None:
        if not matrices or not _in_panels(plain.shape, plain.group_quantized):
            return None
        return partial(NativeGroupedLinear, plain, self._linear_codes, matrices, self._packer)

    def _int8(self, plain: Linear) -> LinearForm | None:
        if any(size % TILE_OUTPUTS for size in plain.shape):
            return None
        return partial(NativeInt8Linear, plain, self._linear_int8, self._packer)

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """See `Kernels`, as for all below."""
        return self._norm(x_ND, None, weight_D, eps, offset)

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        if delta_ND is None:
            return hidden_ND, self._norm(hidden_ND, None, weight_D, eps, offset)
        assert delta_ND.is_contiguous() and delta_ND.shape == hidden_ND.shape
        return hidden_ND, self._norm(hidden_ND, delta_ND.data_ptr(), weight_D, eps, offset)

    def _norm(self, x_ND: Tensor, delta: int | None, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        assert x_ND.is_contiguous()
        out = torch.empty_like(x_ND)
        self._rms_norm(x_ND.data_ptr(), delta, weight_D.data_ptr(), out.data_ptr(), *x_ND.shape, eps, offset)
        return out

    def rope_and_cache_write(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        mapping: SlotMapping,
        keys_GSE: Tensor,
        values_GSE: Tensor,
    ) -> Tensor:
        """See `Kernels`."""
        if norms and mapping.norm_last:
            return super().rope_and_cache_write(qkv_NF, norms, mapping, keys_GSE, values_GSE)
        assert qkv_NF.is_contiguous()
        (B, A), N = mapping.query_shape, mapping.table_2N.shape[1]
        G, _, E = keys_GSE.shape
        H = qkv_NF.shape[1] // E - 2 * G
        q = qkv_NF.new_empty(B, A, H, E) if mapping.full else qkv_NF.new_zeros(B, A, H, E)
        q_norm, k_norm = (n.data_ptr() for n in norms) if norms else (None, None)
        angles, norm = (mapping.cos.data_ptr(), mapping.sin.data_ptr(), None), (mapping.norm_eps, mapping.norm_offset)
        rope = structs.RopeParams(q_norm, k_norm, *angles, *norm)
        table, cache = mapping.table_2N.data_ptr(), cache_of(keys_GSE, values_GSE)
        self._rope_and_cache_write(qkv_NF.data_ptr(), q.data_ptr(), H, rope, table, cache, N)
        return q

    def supports_ragged_attention(self, head_dim: int) -> bool:
        """See `Kernels`."""
        return head_dim % LANES == 0

    def attend(self, q_NHE: Tensor, keys_GSE: Tensor, values_GSE: Tensor, metadata: AttentionMetadata) -> Tensor:
        """See `Kernels`."""
        N, H, E = q_NHE.shape
        assert q_NHE.is_contiguous()
        out, segments, tables = torch.empty_like(q_NHE), metadata.segments, metadata.block_tables
        attended = structs.AttentionMetadata(
            segments.data_ptr(), len(segments), metadata.kv_lens.data_ptr(), tables.data_ptr(), tables.shape[1],
            _address(metadata.kv_starts), metadata.scale or 0.0, metadata.soft_cap or 0.0, _address(metadata.row_paths),
            _address(metadata.path_tables), 0 if metadata.path_tables is None else metadata.path_tables.shape[1],
        )  # fmt: skip
        cache = cache_of(keys_GSE, values_GSE)
        self._attention(q_NHE.data_ptr(), out.data_ptr(), H, cache, attended, kernel_threads())
        return out.view(N, H * E)

    def draft_tree(
        self,
        logits_RV: Tensor,
        temperatures: Sequence[float],
        nodes: int | None,
        inputs: HeadInputs | None = None,
        lookup: Lookup | None = None,
    ) -> DraftTree:
        """See `Kernels`. Hidden sizes that are no multiple of the lanes take the reference implementation."""
        if inputs is not None and inputs.hidden_SD.shape[1] % LANES:
            return super().draft_tree(logits_RV, temperatures, nodes, inputs, lookup)
        return self._draft_tree(logits_RV, temperatures, nodes, inputs, lookup)

    def largest_sum(self, logits_1V: Tensor, temperature: float, random: RandomBits, position: int) -> int | None:
        """See `Kernels`."""
        return self._sampling.largest_sum(logits_1V, temperature, random, position)

    def noisy_rows(self, logits_RV: Tensor, temperature: float, random: RandomBits, position: int) -> Tensor:
        """See `Kernels`."""
        return self._sampling.noisy_rows(logits_RV, temperature, random, position)

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """See `Kernels`."""
        if activation not in self._gated:
            return super().gate(gate_up_NF, activation)
        assert gate_up_NF.is_contiguous()
        rows, size = len(gate_up_NF), gate_up_NF.shape[1] // 2
        out = gate_up_NF.new_empty(rows, size)
        self._gated[activation](gate_up_NF.data_ptr(), out.data_ptr(), rows, size)
        return out


def cache_of(keys: Tensor, values: Tensor) -> structs.KVCache:
    """The dense cache [.., G, S, E] of one layer, the first if there are several."""
    G, slots, E = keys.shape[-3:]
    assert keys.is_contiguous() and values.is_contiguous()
    return structs.KVCache(keys.data_ptr(), values.data_ptr(), G, E, slots * E)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _all_in_groups_of_four_bits(stored: Quantized | None) -> bool:
    parts = [part.quantized for part in stored.parts] if isinstance(stored, FusedQuantized) else [stored]
    return all(isinstance(part, GroupQuantized) and part.bits == 4 for part in parts)


def _in_panels(shape: tuple[int, int], stored: Quantized | None = None) -> bool:
    """Whether the outputs, those of every part, are whole panels, and the inputs whole groups."""
    outputs, inputs = shape
    parts = [part.outputs for part in stored.parts] if isinstance(stored, FusedQuantized) else [outputs]
    return all(count % PANEL_OUTPUTS == 0 for count in parts) and inputs % GROUP == 0


def _bound(function: Any, *takes: type, gives: type | None = None) -> Callable[..., Any]:
    """A function of the library that knows its types."""
    function.argtypes, function.restype = takes, gives
    return cast(Callable[..., Any], function)


def _linear_dequant(library: ctypes.CDLL) -> Kernel | None:
    """`linear_dequant` with scratch memory; None where the library lacks it."""
    scratch_scalars = _bound(library.linear_dequant_scratch, _INTEGER, gives=_INTEGER)
    if not scratch_scalars(GROUP):
        return None
    run = _bound(library.linear_dequant, _POINTER, _WEIGHTS, _POINTER, _INTEGER, _POINTER, _INTEGER)

    def linear_dequant(x: int, weights: structs.LinearWeights, y: int, rows: int, threads: int) -> None:
        scratch = torch.empty(threads, scratch_scalars(weights.inputs), dtype=torch.bfloat16)
        run(x, weights, y, rows, scratch.data_ptr(), threads)

    return linear_dequant


def load(dtype: torch.dtype, cache_directory: Path) -> NativeKernels | None:
    """The kernels for `dtype`; None where they cannot be had."""
    with suppress(compiler.UnavailableError):
        return NativeKernels(build.library(dtype, cache_directory))
    return None
