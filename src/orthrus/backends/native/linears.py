"""Linear maps in C: their weights, packed in the order in which a kernel reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from orthrus.backends.interface import ExecutableLinear
from orthrus.backends.linears import GroupedLinear, Int8Linear
from orthrus.backends.native import structs
from orthrus.backends.native.packing import PANEL_OUTPUTS, Packer
from orthrus.model.linear import Linear
from orthrus.quantization import GROUP, FusedQuantized, Part, StoredMatrix
from orthrus.torch_threads import kernel_threads

TILE_OUTPUTS = 16
PAIR = 2
"""How many inputs of an output lie next to each other in weights for tiles."""
PLAIN, INT8, Q4, Q5_0, Q5_1, Q8, Q4_K, Q5_K, Q6_K, PARTS = range(10)
"""Formats of weights, as `c/linear_weights.h` numbers them."""
BY_INT8 = 64
"""Added to the formats of codes that are multiplied by int8 activations."""
PROBED_OUTPUTS = 1024
"""How many outputs a probe computes: panels of outputs share nothing, so more of them show no more."""
FORMATS = {
    "Q4_0": Q4, "Q4_1": Q4, "Q5_0": Q5_0, "Q5_1": Q5_1, "Q8_0": Q8, "Q4_K": Q4_K, "Q5_K": Q5_K, "Q6_K": Q6_K,
}  # fmt: skip
"""The formats of the types in `quantization.TYPES`."""


class NativeLinear(ExecutableLinear):
    """A linear map that sums every row alone, in one order, so that its bits hold for any number of rows."""

    min_multiple = 1
    packed: Tensor
    format = PLAIN
    outputs: int
    """Of which their number must be a multiple."""

    def __init__(self, plain: Linear, kernel: Callable[..., None], interleave: int, packer: Packer) -> None:
        weight_OI = plain.weight.detach()
        super().__init__(plain, weight_OI.nbytes)
        self._kernel = kernel
        self.packed = packer.copy_to_huge_pages(self.pack(weight_OI, interleave))

    @staticmethod
    def pack(weight_OI: Tensor, interleave: int) -> Tensor:
        """The weights in the order of the kernel: `interleave` inputs of an output lie next to each other."""
        raise NotImplementedError

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`, as for all below."""
        return self._outputs(x_NI, weights_of(self))

    def probe(self, x_NI: Tensor) -> Tensor:
        """The first outputs."""
        return self._outputs(x_NI, probed_weights_of(self))

    def _outputs(self, x_NI: Tensor, weights: structs.LinearWeights) -> Tensor:
        x_NI, rows = x_NI.contiguous(), len(x_NI)
        y_NO = x_NI.new_empty(rows, weights.outputs)
        self._kernel(x_NI.data_ptr(), weights, y_NO.data_ptr(), rows, kernel_threads())
        return y_NO


class TiledLinear(NativeLinear):
    """In bf16, on AMX tiles, or by dot products of pairs."""

    name = "native C, bf16"

    outputs = TILE_OUTPUTS

    @staticmethod
    def pack(weight_OI: Tensor, interleave: int) -> Tensor:
        """[outputs / 16, inputs / 2, 16 outputs, 2] for tiles, else [outputs / 16, inputs / 8, 4, 4 outputs, 8], the
        four being 4 apart."""
        panels = weight_OI.unflatten(0, (-1, TILE_OUTPUTS)).unflatten(2, (-1, interleave)).transpose(1, 2)
        return panels if interleave == PAIR else panels.unflatten(2, (4, 4)).transpose(2, 3)


class PanelLinear(NativeLinear):
    """In fp32, by fused multiply-adds."""

    name = "native C, FMA panels"

    outputs = PANEL_OUTPUTS

    @staticmethod
    def pack(weight_OI: Tensor, interleave: int) -> Tensor:
        """[outputs / 32, inputs, 32 outputs]."""
        assert interleave == 1
        return weight_OI.unflatten(0, (-1, PANEL_OUTPUTS)).transpose(1, 2)


class DequantLinear(NativeLinear):
    """In bf16, on weights that stay as their file stores them and are expanded where they are used.

    The same values by the same sums as in `TiledLinear`, hence the same bits, for a third of the bytes. A fused map
    keeps each of its sources in its own type.
    """

    outputs = TILE_OUTPUTS
    parts: Tensor | None = None
    """[parts, 2]: the outputs and the format of each part, where there are several."""

    def __init__(self, plain: Linear, kernel: Callable[..., None], interleave: int, packer: Packer) -> None:
        quantized = plain.group_quantized
        assert quantized is not None
        sources = quantized.parts if isinstance(quantized, FusedQuantized) else (Part(plain.shape[0], quantized),)
        weights: Sequence[Tensor | None] = [None] * len(sources)
        if not all(part.quantized for part in sources):
            weights = plain.weight.detach().split([part.outputs for part in sources])
        packed = [
            _packed(part, weight, interleave, packer, huge_pages=len(sources) == 1)
            for part, weight in zip(sources, weights, strict=True)
        ]
        formats = [FORMATS[part.quantized.type] if part.quantized else PLAIN for part in sources]
        ExecutableLinear.__init__(self, plain, sum(part.nbytes for part in packed))
        self._kernel = kernel
        self.name = f"native C, {quantized.type} to bf16"
        self.format = formats[0] if len(sources) == 1 else PARTS
        if len(sources) > 1:
            self.parts = torch.tensor([[part.outputs, form] for part, form in zip(sources, formats, strict=True)])
        self.packed = packed[0] if len(sources) == 1 else packer.copy_to_huge_pages(torch.cat(packed))


class NativeInt8Linear(Int8Linear):
    """By dot products of four bytes (VNNI)."""

    name = "native C, int8"
    probed = True
    format = INT8
    packed: Tensor
    shifts_O: Tensor

    def __init__(self, plain: Linear, kernel: Callable[..., None], packer: Packer) -> None:
        ExecutableLinear.__init__(self, plain, plain.shape[0] * (plain.shape[1] + 8))
        self._kernel = kernel
        self.packed, self.scales_O, self.shifts_O = packer.pack_int8(plain.weight.detach())

    def run(self, x_NI: Tensor) -> Tensor:
        """See `Int8Linear`."""
        return self._outputs(x_NI, weights_of(self))

    def probe(self, x_NI: Tensor) -> Tensor:
        """The first outputs."""
        return self._outputs(x_NI, probed_weights_of(self))

    def _outputs(self, x_NI: Tensor, weights: structs.LinearWeights) -> Tensor:
        x_NI, (rows, depth) = x_NI.contiguous(), x_NI.shape
        y_NO, q_NI = x_NI.new_empty(rows, weights.outputs), x_NI.new_empty(rows, depth, dtype=torch.uint8)
        scales_N = x_NI.new_empty(rows, dtype=torch.float32)
        rows_int8 = structs.QuantizedRows(q_NI.data_ptr(), scales_N.data_ptr(), None)
        self._kernel(x_NI.data_ptr(), weights, y_NO.data_ptr(), rows, rows_int8, kernel_threads())
        return y_NO


class NativeGroupedLinear(GroupedLinear):
    """By dot products of four bytes (VNNI), for more than a few rows by tiles, where there are any."""

    name = "native C, groups by int8"
    probed = True
    packed: Tensor
    parts: Tensor | None = None
    """See `DequantLinear`."""

    def __init__(
        self, plain: Linear, kernel: Callable[..., None], matrices: Sequence[StoredMatrix], packer: Packer
    ) -> None:
        several = len(matrices) > 1
        packed = [packer.pack_codes(matrix, huge_pages=not several) for matrix in matrices]
        ExecutableLinear.__init__(self, plain, sum(part.nbytes for part in packed))
        self._kernel = kernel
        formats = [FORMATS[matrix.type] + BY_INT8 for matrix in matrices]
        self.format = PARTS + BY_INT8 if several else formats[0]
        if several:
            outputs = [len(matrix.raw) for matrix in matrices]
            self.parts = torch.tensor([*zip(outputs, formats, strict=True)])
            self.packed = packer.copy_to_huge_pages(torch.cat([part.flatten() for part in packed]))
        else:
            self.packed = packed[0]

    def run(self, x_NI: Tensor) -> Tensor:
        """See `GroupedLinear`."""
        return self._outputs(x_NI, weights_of(self))

    def probe(self, x_NI: Tensor) -> Tensor:
        """The first outputs."""
        return self._outputs(x_NI, probed_weights_of(self))

    def _outputs(self, x_NI: Tensor, weights: structs.LinearWeights) -> Tensor:
        x_NI, (rows, depth) = x_NI.contiguous(), x_NI.shape
        y_NO, q_NI = x_NI.new_empty(rows, weights.outputs), x_NI.new_empty(rows, depth, dtype=torch.int8)
        groups = x_NI.new_empty(rows, depth // GROUP, 4, dtype=torch.int32)  # `RowGroup` of c/quantize.h
        rows_int8 = structs.QuantizedRows(q_NI.data_ptr(), None, groups.data_ptr())
        self._kernel(x_NI.data_ptr(), weights, y_NO.data_ptr(), rows, rows_int8, kernel_threads())
        return y_NO


def _packed(part: Part, weight_OI: Tensor | None, interleave: int, packer: Packer, *, huge_pages: bool) -> Tensor:
    """The bytes of one part of a map in the order of the kernels."""
    if part.quantized is not None:
        packed = packer.pack_dequant(part.quantized, tiles=interleave == PAIR, huge_pages=huge_pages)
        return packed.flatten()
    assert weight_OI is not None
    return TiledLinear.pack(weight_OI, interleave).contiguous().flatten().view(torch.uint8)


def weights_of(linear: NativeLinear | NativeInt8Linear | NativeGroupedLinear) -> structs.LinearWeights:
    """The weights of a linear map as C reads them; valid while its tensors stay where they are."""
    outputs, inputs = linear.shape
    bias = None if linear.bias is None else linear.bias.data_ptr()
    scales = shifts = parts = None
    if isinstance(linear, DequantLinear | NativeGroupedLinear) and linear.parts is not None:
        parts = linear.parts.data_ptr()
    if isinstance(linear, NativeInt8Linear):
        scales, shifts = linear.scales_O.data_ptr(), linear.shifts_O.data_ptr()
    return structs.LinearWeights(linear.packed.data_ptr(), bias, scales, shifts, parts, inputs, outputs, linear.format)


def probed_weights_of(linear: NativeLinear | NativeInt8Linear | NativeGroupedLinear) -> structs.LinearWeights:
    """Those of the first outputs. Of PARTS all: the first outputs would be of the first part alone."""
    weights = weights_of(linear)
    if weights.format not in (PARTS, PARTS + BY_INT8):
        weights.outputs = min(weights.outputs, PROBED_OUTPUTS)
    return weights
