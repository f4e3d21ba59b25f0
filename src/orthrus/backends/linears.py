"""Executable forms of a linear map on torch's own kernels.

`invariance` probes which of them keep their bits on this machine, and under which `RowRule`. The forms in C are in
`native/linears.py`.

Shapes: N rows of a call (those of all sequences), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.backends.interface import ExecutableLinear
from orthrus.k_quants import IntegerGroups
from orthrus.model.linear import Linear
from orthrus.quantization import GROUP, StoredMatrix


class TorchLinear(ExecutableLinear):
    """`F.linear` on the plain weights: the fallback if no faster form keeps its bits."""

    def __init__(self, plain: Linear) -> None:
        weight = plain.weight
        super().__init__(plain, weight.nbytes)
        self.weight, self.group_quantized = _parameter(weight), plain.group_quantized

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`, as for all below."""
        return F.linear(x_NI, self.weight, self.bias)


class PackedLinear(ExecutableLinear):
    """oneDNN on weights that are packed once. (Its fused residual was measured slower than a separate addition.)"""

    name = "oneDNN, packed"

    def __init__(self, plain: Linear) -> None:
        weight_OI = plain.weight.detach()
        super().__init__(plain, weight_OI.nbytes)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        return torch.ops.mkldnn._linear_pointwise.default(x_NI, self._packed, self.bias, "none", [], "")


class ExpandedLinear(ExecutableLinear):
    """oneDNN on weights expanded to fp32, with fp32 activations and results rounded once. It is for processors without
    bf16 arithmetic, whose emulation is many times slower. Reads twice the bytes."""

    name = "oneDNN, expanded to fp32"

    def __init__(self, plain: Linear) -> None:
        weight_OI = plain.weight.detach().float()
        super().__init__(plain, weight_OI.nbytes)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        self._bias_fp32 = None if plain.bias is None else plain.bias.detach().float()

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        y_NO = torch.ops.mkldnn._linear_pointwise.default(x_NI.float(), self._packed, self._bias_fp32, "none", [], "")
        return y_NO.to(x_NI.dtype)


class Int8Linear(ExecutableLinear):
    """y = s_N s_O (q w^T) + b: int8 weights with a scale per output, int8 activations with a scale per row (W8A8).

    Integer sums are exact in any order, so no row depends on other rows. The map differs from its plain form: a
    quantised backbone is another model. This is the reference implementation, which sums in float64.
    """

    name = "torch, int8"
    probed = False
    min_multiple = 1
    scales_O: Tensor

    def __init__(self, plain: Linear) -> None:
        super().__init__(plain, plain.shape[0] * (plain.shape[1] + 8))
        weight_OI = plain.weight.detach().float()
        self.scales_O = weight_OI.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.keep((weight_OI / self.scales_O[:, None]).round().to(torch.int8))

    def keep(self, weight_OI: Tensor) -> None:
        """Store the quantised weights in the form that `run` reads."""
        self._weight_IO = weight_OI.double().T

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        q_NI, scales_N1 = quantize_rows_int8(x_NI)
        y_NO = self.sums(q_NI) * (self.scales_O * scales_N1)
        return (y_NO if self.bias is None else y_NO + self.bias.float()).to(x_NI.dtype)

    def sums(self, q_NI: Tensor) -> Tensor:
        """q w^T [N, O], fp32; q holds integers in fp32."""
        return (q_NI.double() @ self._weight_IO).float()


class GroupedLinear(ExecutableLinear):
    """The same on weights in groups, as their file stores them: their codes are multiplied by int8 activations, which
    have a scale for every 32 inputs.

    y = sum over groups (s_N s_O (q w^T - zero sum q) + s_N min_O sum q) + b, the groups in order, by fused
    multiply-adds. This is the reference implementation.
    """

    name = "torch, groups by int8"
    probed = False
    min_multiple = 1

    def __init__(self, plain: Linear, matrices: Sequence[StoredMatrix]) -> None:
        super().__init__(plain, sum(matrix.raw.nbytes for matrix in matrices))
        self._where = plain.device  # the file's weights are read on the CPU
        self.keep(matrices)

    def keep(self, matrices: Sequence[StoredMatrix]) -> None:
        """Store the weights in the form that `run` reads."""
        self._groups = []
        for stored in (matrix.integers() for matrix in matrices):
            mins = None if stored.mins is None else stored.mins.to(self._where)
            codes = stored.codes.double().to(self._where)
            self._groups.append(replace(stored, codes=codes, scales=stored.scales.to(self._where), mins=mins))

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        q_NI, scales_NG = quantize_groups_int8(x_NI)
        y_NO = torch.cat([_product_of_codes(q_NI, scales_NG, groups) for groups in self._groups], dim=1)
        return (y_NO if self.bias is None else y_NO + self.bias.float()).to(x_NI.dtype)


def _product_of_codes(q_NI: Tensor, scales_NG: Tensor, groups: IntegerGroups) -> Tensor:
    """The product of activations and the codes of one matrix [N, O], fp32."""
    y_NO = q_NI.new_zeros(len(q_NI), len(groups.codes))
    inputs = groups.codes.shape[2]
    for step, q_NE in enumerate(q_NI.double().split(inputs, dim=1)):
        row_N1, sums_N1 = scales_NG[:, step * inputs // GROUP, None], q_NE.sum(dim=1, keepdim=True)
        products_NO = q_NE @ groups.codes[:, step].T - groups.zero * sums_N1
        y_NO = fused_multiply_add(products_NO.float(), groups.scales[:, step] * row_N1, y_NO)
        if groups.mins is not None:
            y_NO = fused_multiply_add(row_N1 * sums_N1.float(), groups.mins[:, step], y_NO)
    return y_NO


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c of fp32, rounded once. The sum in fp64 is rounded to odd: its last bit says whether more is lost."""
    product, addend = torch.broadcast_tensors(a.double() * b.double(), c.double())
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = total.view(torch.int64) & 1 == 0
    towards = torch.where(lost > 0, float("inf"), float("-inf")).to(total)
    return torch.where((lost != 0) & even, torch.nextafter(total, towards), total).float()


def _parameter(weight: Tensor) -> nn.Parameter:
    return weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)


def quantize_rows_int8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127, in fp32, and the scale of each [N, 1]."""
    # torch computes number / tensor as number * reciprocal, which rounds twice
    top_N1 = x_NI.float().abs().amax(dim=1, keepdim=True)
    q_NI = (x_NI.float() * torch.where(top_N1 > 0, torch.full_like(top_N1, 127) / top_N1, 0.0)).round()
    return q_NI, top_N1 / 127


def quantize_groups_int8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a scale for every 32 inputs [N, I / 32]."""
    q_GI, scales_G1 = quantize_rows_int8(x_NI.reshape(-1, GROUP))
    return q_GI.view(x_NI.shape), scales_G1.view(len(x_NI), -1)
