"""What a run trains. A task knows the loss of a micro-batch, how the result is calibrated, and how good it is.

This file has the task of the diffusion view, with its draft head beside it. A micro-batch is a pure function of its
number and the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from orthrus.checkpoint.hub import Checkpoint
from orthrus.model.decoder import Decoder
from orthrus.training import objectives
from orthrus.training.config import TrainConfig
from orthrus.training.data import Corpus
from orthrus.training.draft_head import INVERSE_TEMPERATURES, calibrate
from orthrus.training.frozen_states import FrozenStates
from orthrus.training.packing import Packing
from orthrus.training.rows import HeadRows, head_rows, joined
from orthrus.training.step import DraftHeadRule, Outcome, states_of, step
from orthrus.training.vocabulary import Head

CALIBRATION_ROOTS, CALIBRATION_TEXTS = 64, 4
"""Blocks per held-out text, and texts, from which a view and its draft head are calibrated."""


@dataclass(frozen=True)
class Validation:
    """How the held-out records decode: A, tokens per pass, and the acceptance rate per offset."""

    acceptance_length: float
    tpf: float
    by_offset: list[float]


class Task(Protocol):
    """See the module."""

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute what steps need before the first of them; yields after each text how many are done, of how many."""
        ...

    def outcome(self, number: int) -> Outcome:
        """The loss of a micro-batch, numbered over the whole run."""
        ...

    def batch(self, number: int) -> dict[str, Any]:
        """The data of a micro-batch, for people who look for the cause of a failure."""
        ...

    def calibrate(self) -> None:
        """Fit the calibration of the drafts to held-out records."""
        ...

    def validate(self) -> Validation:
        """How the held-out records decode."""
        ...


class ViewTask:
    """The training of a view, and of its draft head if it has one. `decode` decodes the held-out records. frozen: makes
    what keeps the frozen passes of the texts of a packing."""

    def __init__(
        self, checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, decode: Callable[[], Validation],
        frozen: Callable[[Packing], FrozenStates] | None = None,
    ) -> None:  # fmt: skip
        self._decoder, self._config, self.validate = checkpoint.decoder, config, decode
        self._objective = objectives.load(config.objective)
        self._head_objective = objectives.load(config.head_objective)
        self._packing = Packing(corpus.documents, config)
        self._frozen = None if frozen is None else frozen(self._packing)
        self._held_out = Packing(corpus.held_out, replace(config, roots=CALIBRATION_ROOTS))
        self._head = Head.of(self._decoder, transposed=self._decoder.device.type == "cpu")

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Nothing: every step computes all it needs."""
        return iter(())

    def outcome(self, number: int) -> Outcome:
        """See `Task`: of one packed text."""
        config, blocks = self._config, self._packing.blocks(number)
        return step(
            self._decoder, blocks, self._objective, decay=config.offset_decay, head=self._head,
            draft_head=DraftHeadRule(self._head_objective, config.head_gradient),
            frozen=None if self._frozen is None else self._frozen.of(number, blocks),
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """The size of what is kept on disk."""
        return 0 if self._frozen is None else self._frozen.bytes

    def batch(self, number: int) -> dict[str, Any]:
        """See `Task`."""
        blocks = self._packing.blocks(number)
        content = {name: getattr(blocks, name).tolist() for name in ("tokens_T", "roots_S", "ends_S")}
        return {"starts": blocks.starts, "block_size": blocks.block_size, **content}

    def calibrate(self) -> None:
        """See `Task`."""
        texts = range(min(self._held_out.texts_per_epoch(), CALIBRATION_TEXTS))
        calibrate(self._decoder, joined([_rows(self._decoder, self._held_out, n) for n in texts]))


def _rows(decoder: Decoder, packing: Packing, text: int) -> HeadRows:
    blocks = packing.blocks(text).to(decoder.device)
    with torch.no_grad():
        return head_rows(decoder, states_of(decoder, blocks), INVERSE_TEMPERATURES)
