"""The interface of executors, which run a pass. Executors differ only in speed: the same batch gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orthrus.batch import ForwardBatch


class PassResult(NamedTuple):
    """Logits [num_logits, V] of the first `logit_rows`, and final hidden states [.., D] of all of them."""

    logits: Tensor
    hidden: Tensor


class JointResult(NamedTuple):
    """Per sequence: AR logits [R, V], hidden states [J, width, D] or logits [J, width, V] of its draft blocks, and in
    either case their hidden states."""

    logits: list[Tensor]
    blocks: list[Tensor]
    hidden: list[Tensor]

    @staticmethod
    def of(result: PassResult, rows: Sequence[int], blocks: Sequence[int], width: int) -> JointResult:
        """The result of a pass that computed the logits of so many AR rows per sequence, then those of blocks or not,
        and the hidden states of so many blocks per sequence."""

        def per_sequence(block_rows: Tensor) -> list[Tensor]:
            return _split(block_rows.view(sum(blocks), width, block_rows.shape[1]), blocks)

        count = sum(rows)
        if not any(blocks):
            none = [_no_blocks(width, *result.hidden.shape[1:], result.hidden.dtype, result.hidden.device)] * len(rows)
            return JointResult(_split(result.logits, rows), none, none)
        logits = _split(result.logits[:count], rows)
        hidden = per_sequence(result.hidden[count:])
        of_blocks = per_sequence(result.logits[count:]) if len(result.logits) > count else hidden
        return JointResult(logits, of_blocks, hidden)


@cache
def _no_blocks(width: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(0, width, size, dtype=dtype, device=device)


def _split(tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """A tensor in parts along its first dimension."""
    return [tensor] if len(lengths) == 1 else list(tensor.split(list(lengths)))


class DiffusionResult(NamedTuple):
    """Logits [B, R, V] and final hidden states [B, R, D] of draft blocks."""

    logits: Tensor
    hidden: Tensor


class Executor(Protocol):
    """Runs all layers over the rows of a batch. Keys and values of all rows are left in the cache's workspace."""

    def run(self, batch: ForwardBatch) -> PassResult:
        """Run one pass."""
        ...
