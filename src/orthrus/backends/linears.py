"""Executable forms of a linear map on torch's own kernels.

`invariance` probes which of them keep their bits on this machine, and under which `RowRule`. The forms in C are in
`native/linears.py`.

Shapes: N rows of a call (those of all sequences), I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.backends.interface import ExecutableLinear
from orthrus.model.linear import Linear
from orthrus.quantization import GroupQuantized


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
    """The same on weights in groups of four bits, as their file stores them (W4A8).

    y = s_N sum over groups (s_O (q w^T) + min_O sum q) + b, the groups in order. This is the reference implementation.
    """

    name = "torch, groups by int8"
    probed = False
    min_multiple = 1

    def __init__(self, plain: Linear, quantized: GroupQuantized) -> None:
        super().__init__(plain, quantized.raw.nbytes)
        self._where = plain.device  # the file's weights are read on the CPU
        self.keep(quantized)

    def keep(self, quantized: GroupQuantized) -> None:
        """Store the weights in the form that `run` reads."""
        stored = quantized.codes, quantized.scales, quantized.mins
        self._codes, self._scales, self._mins = (tensor.double().to(self._where) for tensor in stored)

    def run(self, x_NI: Tensor) -> Tensor:
        """See `ExecutableLinear`."""
        q_NI, scales_N1 = quantize_rows_int8(x_NI)
        y_NO = x_NI.new_zeros(len(x_NI), self.shape[0], dtype=torch.float32)
        for group, q_NG in enumerate(q_NI.double().split(self._codes.shape[2], dim=1)):
            y_NO = (q_NG @ self._codes[:, group].T * self._scales[:, group] + y_NO).float()
            y_NO = (q_NG.sum(dim=1, keepdim=True) * self._mins[:, group] + y_NO).float()
        y_NO = y_NO * scales_N1
        return (y_NO if self.bias is None else y_NO + self.bias.float()).to(x_NI.dtype)


def _parameter(weight: Tensor) -> nn.Parameter:
    return weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)


def quantize_rows_int8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127, in fp32, and the scale of each [N, 1]."""
    # torch computes number / tensor as number * reciprocal, which rounds twice
    top_N1 = x_NI.float().abs().amax(dim=1, keepdim=True)
    q_NI = (x_NI.float() * torch.where(top_N1 > 0, torch.full_like(top_N1, 127) / top_N1, 0.0)).round()
    return q_NI, top_N1 / 127
