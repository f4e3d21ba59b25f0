"""The sequential draft head: corrects the candidates of a row of a block by the token that stands before them.

The rows of a block are predicted independently of each other, so their likeliest tokens need not fit together. Row j
has a few candidates; given the token chosen at row j - 1, a two-layer MLP on (h_j, h_{j-1}, embedding of that token)
gives a vector whose products with the frozen embeddings of the candidates are added to their logits. h are the final
hidden states of the block, after the final norm.

Shapes: M units of the MLP, C candidates; the rest as in `orthrus.config`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CANDIDATES = 8
"""Candidates per row: the tokens of its largest logits."""
UNIT_MULTIPLE = 16
"""M is a multiple of it: the lanes of vector registers."""


class DraftHead(nn.Module):
    """The weights of a head, empty and frozen. Raises ValueError where the number of units does not suit the kernels.

    inverse_temperatures: per row of a block, what its corrected logits are multiplied by so that the probability of a
    candidate is the share of cases in which the AR view chooses it.
    """

    def __init__(self, hidden_size: int, units: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        if units < 1 or units % UNIT_MULTIPLE:
            raise ValueError(f"the units of a draft head must be a multiple of {UNIT_MULTIPLE}, not {units}")
        self.units, D = units, hidden_size

        def empty(*shape: int, kind: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=kind, device=device), requires_grad=False)

        self.row, self.before, self.token = empty(units, D), empty(units, D), empty(units, D)
        self.bias = empty(units, kind=torch.float32)
        self.output = empty(D, units)
        self.inverse_temperatures = empty(rows, kind=torch.float32)

    def context(self, row_ND: Tensor, before_ND: Tensor) -> Tensor:
        """What the MLP takes from the hidden states of a row and of the row before it: [N, M], fp32."""
        kind = row_ND.dtype
        return (F.linear(row_ND, self.row.to(kind)) + F.linear(before_ND, self.before.to(kind))).float() + self.bias

    def direction(self, context_NM: Tensor, token_ND: Tensor) -> Tensor:
        """The vector [N, D], fp32, for a row with this context after the token with this embedding. The hidden layer is
        rounded to the type of the weights, as kernels do."""
        kind = token_ND.dtype
        hidden_NM = F.silu(context_NM + F.linear(token_ND, self.token.to(kind)).float())
        return F.linear(hidden_NM.to(self.output.dtype).to(kind), self.output.to(kind)).float()


def default_units(hidden_size: int) -> int:
    """The units of a head for this hidden size: 0.4 of it, in whole multiples."""
    return max(1, hidden_size * 2 // 5 // UNIT_MULTIPLE) * UNIT_MULTIPLE


def typical_inverse_temperature(row: int) -> float:
    """Of a row of a block, where it was not measured: the row of the root is too cautious, for it knows its root."""
    return 1.9 if row == 0 else 1.1


def initialise(head: DraftHead, generator: torch.Generator) -> DraftHead:
    """Random first layer and zero output: the head starts without any correction."""
    with torch.no_grad():
        for weight in (head.row, head.before, head.token):
            weight.copy_(torch.randn(weight.shape, generator=generator) / (3 * weight.shape[1]) ** 0.5)
        head.bias.zero_()
        head.output.zero_()
        head.inverse_temperatures.fill_(1.0)
    return head
