"""Matrix products: a linear map in plain torch, and the forms of it that run faster.

Which of them keep their promise on this machine, and under which `RowRule`, is found out in `probes.py`. Those in C are
in `native_linears.py`.

Shapes: N rows of a product (those of all sequences), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.quantization import Blocks

MOST_ROWS = 512
"""The most rows that a kernel is ever probed with, and so called with."""


@dataclass(frozen=True)
class RowRule:
    """How rows must be laid out for a kernel: pad to a `multiple`, call with at most `most` rows.

    `exact` is False where no layout was found under which the bits hold; the rule is then only the best guess.
    """

    multiple: int
    most: int
    exact: bool = True


class Linear(nn.Module):
    """y = x W^T + b in plain torch: the slow twin, and the form in which weights are trained and saved."""

    name = "torch linear"
    probed = True
    """Whether its rule must be found out; not where every sum is exact in any order."""
    least_multiple = 2
    """A single row takes a matrix-vector path in most libraries, which rounds differently, though on some values only,
    so that a probe may miss it: never trusted, unless a form says that it sums every row alone."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, dtype=dtype, device=device), requires_grad=False) if bias else None
        )
        self.rule = RowRule(2, MOST_ROWS, exact=False)
        self.stored_bytes = self.weight.nbytes
        """What a product reads of its weights."""
        self.blocks: Blocks | None = None
        """The weights as their file holds them, where it holds them in fewer bits."""

    def _instead_of(self, plain: Linear, stored_bytes: int) -> None:
        """Begin another form of a linear map, without its weights."""
        nn.Module.__init__(self)
        self.register_parameter("weight", None)
        self.bias, self.rule, self.shape, self.blocks = plain.bias, plain.rule, plain.shape, None
        self.stored_bytes = stored_bytes

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]."""
        return self._in_pieces(lambda x: F.linear(x, self.weight, self.bias), x_NI)

    def _in_pieces(self, kernel: Callable[[Tensor], Tensor], x_NI: Tensor) -> Tensor:
        """Run `kernel` within the rule: rows padded to its multiple, at most `most` of them a call."""
        rows, rule = len(x_NI), self.rule
        padding = -rows % rule.multiple
        if padding:
            x_NI = F.pad(x_NI, (0, 0, 0, padding))
        y_NO = kernel(x_NI) if len(x_NI) <= rule.most else torch.cat([kernel(piece) for piece in x_NI.split(rule.most)])
        return y_NO[:rows] if padding else y_NO


Form = Callable[[], Linear]
"""Makes another form of a linear map, or raises RuntimeError where it cannot be had."""


class PackedLinear(Linear):
    """The same on weights packed once for oneDNN. (Its fused residual was measured slower than a separate addition.)"""

    name = "oneDNN, packed"

    def __init__(self, plain: Linear) -> None:
        self._instead_of(plain, plain.stored_bytes)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """See `Linear`."""
        if len(x_NI) <= self.rule.most and len(x_NI) % self.rule.multiple == 0:
            return self._kernel(x_NI)
        return self._in_pieces(self._kernel, x_NI)

    def _kernel(self, x_NI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x_NI, self._packed, self.bias, "none", [], "")


class ExpandedLinear(Linear):
    """The same on weights expanded to fp32, with activations in fp32 and results rounded once: for processors that have
    no bf16 arithmetic, where emulating it is many times slower. Twice the bytes of the weights."""

    name = "oneDNN, expanded to fp32"

    def __init__(self, plain: Linear) -> None:
        self._instead_of(plain, 2 * plain.stored_bytes)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach().float())
        self._bias_fp32 = None if plain.bias is None else plain.bias.detach().float()

    def forward(self, x_NI: Tensor) -> Tensor:
        """See `Linear`."""
        return self._in_pieces(self._kernel, x_NI)

    def _kernel(self, x_NI: Tensor) -> Tensor:
        y_NO = torch.ops.mkldnn._linear_pointwise.default(x_NI.float(), self._packed, self._bias_fp32, "none", [], "")
        return y_NO.to(x_NI.dtype)


class Int8Linear(Linear):
    """y = s_N s_O (q w^T) + b: int8 weights with a scale per output, int8 activations with a scale per row (W8A8).

    Sums of integers are exact in any order, so no row depends on its neighbours. It is another map than its plain form:
    a quantised backbone is a model of its own. This is the slow twin, whose sums are made in float64.
    """

    name = "torch, int8"
    probed = False
    least_multiple = 1
    scales_O: Tensor

    def __init__(self, plain: Linear) -> None:
        self._instead_of(plain, plain.shape[0] * (plain.shape[1] + 8))
        weight_OI = plain.weight.detach().float()
        self.scales_O = weight_OI.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.keep((weight_OI / self.scales_O[:, None]).round().to(torch.int8))

    def keep(self, weight_OI: Tensor) -> None:
        """Store the quantised weights in the form that `run` reads."""
        self._weight_IO = weight_OI.double().T

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]; see `Linear`."""
        return self._in_pieces(self.run, x_NI)

    def run(self, x_NI: Tensor) -> Tensor:
        """The product of rows within the rule."""
        q_NI, scales_N1 = in_whole_numbers(x_NI)
        y_NO = self.sums(q_NI) * (self.scales_O * scales_N1)
        return (y_NO if self.bias is None else y_NO + self.bias.float()).to(x_NI.dtype)

    def sums(self, q_NI: Tensor) -> Tensor:
        """q w^T [N, O], fp32, of whole numbers q in fp32."""
        return (q_NI.double() @ self._weight_IO).float()


class GroupedLinear(Linear):
    """The same on weights in groups of four bits, as their file has them: W4A8.

    y = s_N sum over groups (s_O (q w^T) + least_O sum q) + b, the groups in order. This is the slow twin.
    """

    name = "torch, groups by int8"
    probed = False
    least_multiple = 1

    def __init__(self, plain: Linear, blocks: Blocks) -> None:
        self._instead_of(plain, blocks.raw.nbytes)
        self.keep(blocks)

    def keep(self, blocks: Blocks) -> None:
        """Store the weights in the form that `run` reads."""
        found = blocks.numbers, blocks.scales, blocks.least
        self._numbers, self._scales, self._least = (tensor.double() for tensor in found)

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]; see `Linear`."""
        return self._in_pieces(self.run, x_NI)

    def run(self, x_NI: Tensor) -> Tensor:
        """The product of rows within the rule."""
        q_NI, scales_N1 = in_whole_numbers(x_NI)
        y_NO = x_NI.new_zeros(len(x_NI), self.shape[0], dtype=torch.float32)
        for group, q_NG in enumerate(q_NI.double().split(self._numbers.shape[2], dim=1)):
            y_NO = (q_NG @ self._numbers[:, group].T * self._scales[:, group] + y_NO).float()
            y_NO = (q_NG.sum(dim=1, keepdim=True) * self._least[:, group] + y_NO).float()
        y_NO = y_NO * scales_N1
        return (y_NO if self.bias is None else y_NO + self.bias.float()).to(x_NI.dtype)


def in_whole_numbers(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of whole numbers from -127 to 127, in fp32, and the scale of each [N, 1]."""
    # a number over a tensor would be computed as the number times the reciprocal, rounded twice
    top_N1 = x_NI.float().abs().amax(dim=1, keepdim=True)
    q_NI = (x_NI.float() * torch.where(top_N1 > 0, torch.full_like(top_N1, 127) / top_N1, 0.0)).round()
    return q_NI, top_N1 / 127
