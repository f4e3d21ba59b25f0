"""Matrix products in C: their weights, in the order in which a kernel reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from orthrus.backends.interface import ExecutableLinear
from orthrus.backends.linears import GroupedLinear, Int8Linear
from orthrus.backends.native.huge_pages import in_huge_pages
from orthrus.model.layers import Linear
from orthrus.quantization import GROUP, Blocks

TILE_OUTPUTS, PANEL_OUTPUTS = 16, 32
PAIR = 2
"""How many inputs of an output lie side by side in weights for tiles."""
PLAIN, INT8, FOUR_BITS, EIGHT_BITS, GROUPED = range(5)
"""How weights are stored, as `c/blocks.h` numbers it."""

_INTEGER = ctypes.c_int64


class NativeLinear(ExecutableLinear):
    """A linear map that sums every row alone, in one order, so that its bits hold for any number of rows."""

    least_multiple = 1
    packed: Tensor
    form = PLAIN
    outputs: int
    """Of which their number must be a multiple."""

    def __init__(self, plain: Linear, kernel: Callable[..., None], beside: int) -> None:
        super().__init__(plain, plain.weight.nbytes)
        self._kernel = kernel
        self.packed = in_huge_pages(self.pack(plain.weight.detach(), beside))

    @staticmethod
    def pack(weight_OI: Tensor, beside: int) -> Tensor:
        """The weights in the order in which the kernel reads them, with so many inputs of an output side by side."""
        raise NotImplementedError

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        x_NI = x_NI.contiguous()
        y_NO = x_NI.new_empty(len(x_NI), self.shape[0])
        bias = None if self.bias is None else self.bias.data_ptr()
        where = (x_NI.data_ptr(), self.packed.data_ptr(), bias, y_NO.data_ptr())
        self._kernel(*where, *x_NI.shape, self.shape[0], torch.get_num_threads())
        return y_NO


class TiledLinear(NativeLinear):
    """In bf16, on AMX tiles, or by dot products of pairs."""

    name = "native C, bf16"

    outputs = TILE_OUTPUTS

    @staticmethod
    def pack(weight_OI: Tensor, beside: int) -> Tensor:
        """[outputs / 16, inputs / 2, 16 outputs, 2] for tiles, else [outputs / 16, inputs / 8, 4, 4 outputs, 8], the
        four being 4 apart."""
        panels = weight_OI.unflatten(0, (-1, TILE_OUTPUTS)).unflatten(2, (-1, beside)).transpose(1, 2)
        return panels if beside == PAIR else panels.unflatten(2, (4, 4)).transpose(2, 3)


class PanelLinear(NativeLinear):
    """In fp32, by fused multiply-adds."""

    name = "native C, FMA panels"

    outputs = PANEL_OUTPUTS

    @staticmethod
    def pack(weight_OI: Tensor, beside: int) -> Tensor:
        """[outputs / 32, inputs, 32 outputs]."""
        assert beside == 1
        return weight_OI.unflatten(0, (-1, PANEL_OUTPUTS)).transpose(1, 2)


class BlockLinear(NativeLinear):
    """In bf16, on weights that stay in the groups of their file and are expanded where they are used.

    The same values by the same sums as in `TiledLinear`, hence the same bits, for a third of the bytes.
    """

    outputs = TILE_OUTPUTS

    def __init__(self, plain: Linear, kernel: Callable[..., None], beside: int, blocks: Blocks) -> None:
        packed = blocks.packed() if beside == PAIR else blocks.packed_in_quads()
        ExecutableLinear.__init__(self, plain, packed.nbytes)
        self._kernel = kernel
        self.name = f"native C, {blocks.type} to bf16"
        self.form = FOUR_BITS if blocks.four_bits else EIGHT_BITS
        self.packed = in_huge_pages(packed)

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        x_NI, threads = x_NI.contiguous(), torch.get_num_threads()
        y_NO = x_NI.new_empty(len(x_NI), self.shape[0])
        room = x_NI.new_empty(threads, PANEL_OUTPUTS * self.shape[1] + 4 * TILE_OUTPUTS * GROUP)
        bias = None if self.bias is None else self.bias.data_ptr()
        sizes = (_INTEGER * 5)(*x_NI.shape, self.shape[0], self.form, threads)
        self._kernel(x_NI.data_ptr(), self.packed.data_ptr(), bias, y_NO.data_ptr(), room.data_ptr(), sizes)
        return y_NO


class NativeInt8Linear(Int8Linear):
    """By dot products of four bytes (VNNI)."""

    name = "native C, int8"
    probed = True
    form = INT8
    packed: Tensor
    shifts_O: Tensor

    def __init__(self, plain: Linear, kernel: Callable[..., None]) -> None:
        self._kernel = kernel
        super().__init__(plain)

    def keep(self, weight_OI: Tensor) -> None:
        """[outputs / 16, inputs / 4, 16 outputs, 4], and 128 times the sum of each output's weights."""
        self.shifts_O = 128 * weight_OI.sum(dim=1, dtype=torch.int32)
        self.packed = in_huge_pages(weight_OI.unflatten(0, (-1, TILE_OUTPUTS)).unflatten(2, (-1, 4)).transpose(1, 2))

    def run(self, x_NI: Tensor) -> Tensor:
        """See `Int8Linear`."""
        x_NI, (rows, depth) = x_NI.contiguous(), x_NI.shape
        y_NO, q_NI = x_NI.new_empty(rows, self.shape[0]), x_NI.new_empty(rows, depth, dtype=torch.uint8)
        scales_N = x_NI.new_empty(rows, dtype=torch.float32)
        bias = None if self.bias is None else self.bias.data_ptr()
        sizes = (_INTEGER * 4)(rows, depth, self.shape[0], torch.get_num_threads())
        self._kernel(
            x_NI.data_ptr(), self.packed.data_ptr(), self.scales_O.data_ptr(), self.shifts_O.data_ptr(), bias,
            y_NO.data_ptr(), q_NI.data_ptr(), scales_N.data_ptr(), sizes,
        )  # fmt: skip
        return y_NO


class NativeGroupedLinear(GroupedLinear):
    """By dot products of four bytes (VNNI), for more than a few rows by tiles, where there are any."""

    name = "native C, groups by int8"
    probed = True
    form = GROUPED
    packed: Tensor

    def __init__(self, plain: Linear, kernel: Callable[..., None], blocks: Blocks) -> None:
        self._kernel = kernel
        super().__init__(plain, blocks)

    def keep(self, blocks: Blocks) -> None:
        """See `Blocks.packed_in_bytes`."""
        self.packed = in_huge_pages(blocks.packed_in_bytes())

    def run(self, x_NI: Tensor) -> Tensor:
        """See `GroupedLinear`."""
        x_NI, (rows, depth) = x_NI.contiguous(), x_NI.shape
        y_NO, q_NI = x_NI.new_empty(rows, self.shape[0]), x_NI.new_empty(rows, depth, dtype=torch.int8)
        sums, scales_N = (x_NI.new_empty(rows, n, dtype=torch.float32) for n in (depth // GROUP, 1))
        bias = None if self.bias is None else self.bias.data_ptr()
        sizes = (_INTEGER * 4)(rows, depth, self.shape[0], torch.get_num_threads())
        self._kernel(
            x_NI.data_ptr(), self.packed.data_ptr(), bias, y_NO.data_ptr(), q_NI.data_ptr(), sums.data_ptr(),
            scales_N.data_ptr(), sizes,
        )  # fmt: skip
        return y_NO
