"""The interface of executors, which run a pass. Executors differ only in speed: the same batch gives the same bits."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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


class DiffusionResult(NamedTuple):
    """Logits [B, R, V] and final hidden states [B, R, D] of draft blocks."""

    logits: Tensor
    hidden: Tensor


class Executor(Protocol):
    """Runs all layers over the rows of a batch. Keys and values of all rows are left in the cache's workspace."""

    def run(self, batch: ForwardBatch) -> PassResult:
        """Run one pass."""
        ...
