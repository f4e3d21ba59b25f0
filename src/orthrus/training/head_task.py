"""The training of a draft head on a view that stays as it is.

The view gives the same rows at every epoch. So all texts run once, their rows are kept on disk, and an epoch over them
takes seconds. A micro-batch is some of all blocks, in a new order at every epoch. Held-out records decode by replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.training import objectives
from orthrus.training.config import TrainConfig
from orthrus.training.data import Corpus
from orthrus.training.draft_head import INVERSE_TEMPERATURES, calibrate
from orthrus.training.packing import Packing, permutation
from orthrus.training.replay import accepted_drafts
from orthrus.training.row_files import RowFiles
from orthrus.training.rows import empty, head_rows
from orthrus.training.step import Outcome, head_step, states_of
from orthrus.training.tasks import Validation
from orthrus.training.world import World


@dataclass(frozen=True)
class Texts:
    """The packed texts of one epoch, the files of their rows, and the inverse temperatures of these."""

    packing: Packing
    files: RowFiles
    inverses: Sequence[float]


class HeadTask:
    """See the module. `digest` is that of the frozen weights. Raises ValueError where `directory` holds other rows."""

    def __init__(
        self, decoder: Decoder, config: TrainConfig, corpus: Corpus, digest: str, directory: Path, world: World
    ) -> None:
        self._decoder, self._config, self._world = decoder, config, world
        self._objective = objectives.load(config.head_objective)
        described = {name: getattr(config, name) for name in ("sequence_length", "roots", "seed", "mask_token_id")}
        described |= {"frozen": digest, "data": corpus.digest, "held_out": len(corpus.held_out)}
        if decoder.draft_tokens is not None:
            described["draft_vocabulary"] = decoder.draft_tokens.tolist()

        def texts(name: str, packing: Packing, inverses: Sequence[float]) -> Texts:
            blocks = [len(packing.blocks(n).roots_S) for n in range(packing.texts_per_epoch())]
            types = empty(0, config.trained_rows, decoder.config.hidden_size, len(inverses), decoder.dtype)
            return Texts(packing, RowFiles(directory / name, described, blocks, types), inverses)

        self._train = texts("train", Packing(corpus.documents, config), (1.0,))
        every_root = replace(config, roots=config.sequence_length)
        self._held_out = texts("held-out", Packing(corpus.held_out, every_root), INVERSE_TEMPERATURES)
        self._order: tuple[int, Tensor] | None = None

    @property
    def blocks(self) -> int:
        """The blocks of an epoch."""
        return self._train.files.blocks

    @property
    def bytes(self) -> int:
        """The size of all rows on disk."""
        return self._train.files.bytes + self._held_out.files.bytes

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute the rows of all texts that have none yet. Processes take turns."""
        todo = [(part, text) for part in (self._held_out, self._train) for text in range(part.files.texts)]
        for number, (part, text) in enumerate(todo):
            if number % self._world.size == self._world.rank and not part.files.is_done(text):
                blocks = part.packing.blocks(text).to(self._decoder.device)
                with torch.no_grad():
                    part.files.write(text, head_rows(self._decoder, states_of(self._decoder, blocks), part.inverses))
            yield number + 1, len(todo)

    def outcome(self, number: int) -> Outcome:
        """See `Task`: of as many blocks as a packed text has roots."""
        rows = self._train.files.read(self._chosen(number)).to(self._decoder.device)
        return head_step(self._decoder, rows, self._objective, decay=self._config.offset_decay)

    def batch(self, number: int) -> dict[str, Any]:
        """See `Task`: the blocks, numbered in order of texts and roots, and their tokens."""
        chosen_S = self._chosen(number)
        return {"blocks": chosen_S.tolist(), "text_SL": self._train.files.read(chosen_S).text_SL.tolist()}

    def calibrate(self) -> None:
        """See `Task`."""
        calibrate(self._decoder, self._held_out.files.all().to(self._decoder.device))

    def validate(self) -> Validation:
        """Replay two-pass cycles with trees over the held-out texts."""
        rows = self._held_out.files.all().to(self._decoder.device)
        accepted = np.array(accepted_drafts(self._decoder, rows, self._config.validation_nodes))
        mean = float(accepted.mean())
        return Validation(
            mean, (mean + 1) / 2, [float((accepted > row).mean()) for row in range(self._config.trained_rows)]
        )

    def _chosen(self, number: int) -> Tensor:
        """The blocks of a micro-batch: the next ones in the order of their epoch."""
        size, count = self._config.roots, self.blocks
        positions_S = torch.arange(number * size, (number + 1) * size)
        parts = []
        for epoch in (positions_S // count).unique().tolist():
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, permutation(self._config.seed, epoch, count)
            parts.append(self._order[1][positions_S[positions_S // count == epoch] % count])
        return torch.cat(parts).sort().values
