"""A linear map whose weights stay in their file until a kernel packs them: loading makes no plain copy of all."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from orthrus.model.linear import Linear
from orthrus.quantization import Quantized


class WeightSource(Protocol):
    """The weights of one linear map in their file."""

    def weight(self, shape: tuple[int, int]) -> Tensor:
        """The weights `shape` = [O, I], fused and cast. Raises ValueError where they are damaged."""
        ...

    def group_quantized(self) -> Quantized | None:
        """The weights as the file holds them, where it holds them in fewer bits."""
        ...


class StoredLinear(Linear):
    """A `Linear` that reads its weights whenever they are asked for. Its bias, if any, is read already."""

    def __init__(self, plain: Linear, source: WeightSource) -> None:
        nn.Module.__init__(self)
        self.shape, self.bias, self._dtype, self._source = plain.shape, plain.bias, plain.dtype, source
        self.quantizable = plain.quantizable

    @property
    def dtype(self) -> torch.dtype:
        """See `Linear`."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The CPU, for files are read there."""
        return torch.device("cpu")

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """See `WeightSource`."""
        return self._source.weight(self.shape)

    @property
    def group_quantized(self) -> Quantized | None:  # type: ignore[override]
        """See `WeightSource`."""
        return self._source.group_quantized()
