"""The linear map, in the form in which weights are trained and saved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.quantization import Quantized


class Linear(nn.Module):
    """y = x W^T + b, in the dtype of x: the form in which weights are trained and saved. Shapes: N rows, I inputs, O
    outputs."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, dtype=dtype, device=device), requires_grad=False) if bias else None
        )
        self.group_quantized: Quantized | None = None
        """The weights as their file holds them, where it holds them in fewer bits."""
        self.quantizable = True
        """Whether `int8` may quantise it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight.device

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]. fp32 master weights are cast to the dtype of x."""
        bias = self.bias
        return F.linear(x_NI, self.weight.to(x_NI.dtype), None if bias is None else bias.to(x_NI.dtype))
