"""The vectors of tokens: plain, or as their file stores them, of which only the rows at hand are expanded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from orthrus.quantization import StoredMatrix


class Embedding(nn.Module):
    """The vectors [V, D] of all tokens: the form in which they are trained with and saved."""

    def __init__(self, weight_VD: Tensor) -> None:
        super().__init__()
        self.weight, self.dtype = nn.Parameter(weight_VD, requires_grad=False), weight_VD.dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors of tokens [..], which become [.., D]."""
        return self.weight[tokens]


class StoredEmbedding(Embedding):
    """The same for a quantised matrix, which stays in the mapped memory of its file. A pass expands the rows that it
    reads, to the values that the whole matrix would have in `dtype`. It has no parameter."""

    def __init__(self, stored: StoredMatrix, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        assert stored.raw.is_contiguous()
        self.register_parameter("weight", None)
        self.stored, self.dtype = stored, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """See `Embedding`."""
        rows = replace(self.stored, raw=self.stored.raw[tokens.flatten().cpu()]).values().to(self.dtype)
        return rows.view(*tokens.shape, rows.shape[-1])
