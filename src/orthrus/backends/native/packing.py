"""Packs weights in C, from the groups of their file or from plain values, into memory in huge pages.

The reference implementations are `GroupQuantized.packed_for_*` and `Int8Linear`: the bytes are the same.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from orthrus.backends.native import structs
from orthrus.backends.native.huge_pages import HugePageArena
from orthrus.quantization import BYTES, GROUP, OUTPUTS, GroupQuantized, StoredMatrix

LAYOUTS = ("tiles", "dots", "codes")
"""The layouts, as `c/pack_groups.h` numbers them."""
PANEL_OUTPUTS = 2 * OUTPUTS
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class Packer(HugePageArena):
    """The packing functions of one library, and the memory for what they pack."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._pack_groups, self._pack_int8 = library.pack_groups, library.pack_int8
        self._pack_groups.argtypes = (ctypes.POINTER(structs.StoredGroups), _POINTER, _INTEGER)
        self._pack_int8.argtypes = (*(_POINTER,) * 4, *(_INTEGER,) * 3)
        self._pack_groups.restype = self._pack_int8.restype = None
        library.codes_interleave.restype = library.lanes_in_pairs.restype = _INTEGER
        self._interleave, self._paired = int(library.codes_interleave()), bool(library.lanes_in_pairs())

    def pack_groups(self, quantized: GroupQuantized, layout: str, *, huge_pages: bool = True) -> Tensor:
        """See `GroupQuantized.packed_for_tiles` and its siblings. The number of outputs is a multiple of 32."""
        raw, scales, mins = quantized.raw.contiguous(), quantized.scales.contiguous(), None
        outputs, groups, stride = raw.shape
        bits = quantized.bits
        if bits == 4 or quantized.stores_mins:
            mins = quantized.mins.contiguous()
        codes, units = GROUP * bits // 8, 1 if mins is None else 2
        shape = outputs // OUTPUTS * groups, OUTPUTS * (codes + 2 * units)
        out = self.empty(shape, torch.uint8) if huge_pages else torch.empty(shape, dtype=torch.uint8)
        stored = structs.StoredGroups(
            raw.data_ptr() + BYTES[quantized.type] - codes, scales.data_ptr(),
            None if mins is None else mins.data_ptr(), outputs, groups, stride, bits, LAYOUTS.index(layout),
        )  # fmt: skip
        self._pack_groups(stored, out.data_ptr(), torch.get_num_threads())
        panels = (outputs // PANEL_OUTPUTS, groups, 2) if layout == "tiles" else (-1, groups)
        return out.unflatten(0, panels)

    def pack_dequant(self, quantized: StoredMatrix, *, tiles: bool, huge_pages: bool = True) -> Tensor:
        """See `packed_for_dots` of both types of matrices, and `GroupQuantized.packed_for_tiles`."""
        if isinstance(quantized, GroupQuantized):
            return self.pack_groups(quantized, "tiles" if tiles else "dots", huge_pages=huge_pages)
        packed = quantized.packed_for_dots(paired=self._paired)
        return self.copy_to_huge_pages(packed) if huge_pages else packed

    def pack_codes(self, quantized: StoredMatrix, *, huge_pages: bool = True) -> Tensor:
        """See `packed_for_codes` of both types of matrices."""
        if isinstance(quantized, GroupQuantized):
            return self.pack_groups(quantized, "codes", huge_pages=huge_pages)
        packed = quantized.packed_for_codes(interleave=self._interleave)
        return self.copy_to_huge_pages(packed) if huge_pages else packed

    def pack_int8(self, weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [O / 16, 16 I], scales [O], and 128 times the sum of the codes of each output [O]. The order of the
        codes of sixteen outputs is that of the kernels of this level: see `c/pack_int8.h`."""
        weight_OI = weight_OI.contiguous()
        outputs, inputs = weight_OI.shape
        codes = self.empty((outputs // OUTPUTS, OUTPUTS * inputs), torch.int8)
        scales, shifts = torch.empty(outputs), torch.empty(outputs, dtype=torch.int32)
        pointers = (tensor.data_ptr() for tensor in (weight_OI, codes, scales, shifts))
        self._pack_int8(*pointers, outputs, inputs, torch.get_num_threads())
        return codes, scales, shifts
