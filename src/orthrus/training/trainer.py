"""The training loop: steps, validation by actual decoding, the best adapter, and a state to resume from.

A step depends only on its number, the seed and the saved state, so a run that is killed and resumed produces the same
bits as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from orthrus.checkpoint.export import export_adapter
from orthrus.checkpoint.hub import Checkpoint
from orthrus.file_cache import save_json, write_atomically
from orthrus.training import run_file, state
from orthrus.training.average import WeightAverage
from orthrus.training.config import TrainConfig
from orthrus.training.data import Corpus
from orthrus.training.frozen_states import FrozenStates
from orthrus.training.head_task import HeadTask
from orthrus.training.losses import Losses
from orthrus.training.metrics import Metrics
from orthrus.training.parameters import frozen_digest, of_head, prepare_head, trainable
from orthrus.training.schedule import decay_start, rate_at
from orthrus.training.tasks import Task, Validation, ViewTask
from orthrus.training.world import World

FROZEN = "frozen"
"""The directory of what the AR view computes for each document, if it is kept."""
ROWS = "rows"
"""The directory of the rows that a run of the draft head alone computes once."""


class TrainingFailedError(RuntimeError):
    """Training cannot continue: the loss or gradient is not finite, the loss exploded, or a frozen weight changed."""


@dataclass(frozen=True)
class Progress:
    """One optimiser step: loss per row, in the unit of its objective, weighted by offset; learning rate; agreement with
    the teacher by offset; rows. Where the draft head is trained alone, they are those of the head."""

    step: int
    loss: float
    rate: float
    gradient_norm: float
    rows: int
    rows_total: int
    agreement: list[float]
    seconds: float
    head_loss: float | None = None
    validation: Validation | None = None


Validate = Callable[[], Validation]


class Trainer:
    """Trains the diffusion view of an unprepared checkpoint in place and writes its results into `directory`.

    With `ema`, the average of the weights is what decodes held-out records and is saved as an adapter. The files are
    `run.json` (settings and data), `metrics.jsonl`, `curves.png`, `state.safetensors`, `stable.safetensors` (the state
    before the decay of a WSD schedule), and the adapters `best/` (highest A) and `last/`.

    rewound: whether it extends a run from before its decay. rows_on_disk: the bytes of the rows that it computes once,
    in `rows/`; frozen_states_on_disk: those of what the AR view computes for each document, in `frozen/`, which
    `keep_frozen_states` keeps.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, directory: Path, validate: Validate,
        world: World | None = None, *, keep_frozen_states: bool = False,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config, self.directory = checkpoint, config, directory
        self._world = world or World()
        if config.sequences % self._world.size:
            raise ValueError(f"sequences must be a multiple of {self._world.size} processes, not {config.sequences}")
        if config.head_units:
            prepare_head(checkpoint.decoder, config.head_units, config.seed)
        self._parameters = trainable(checkpoint.decoder, view=not config.head_only, head=bool(config.head_units))
        groups = [p for n, p in self._parameters.items() if not of_head(n)], self._head_parameters
        self._optimiser = AdamW(
            [{"params": group} for group in groups if group], config.learning_rate, config.betas,
            weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip
        self._average = WeightAverage(self._parameters, config.ema)
        self._frozen = frozen_digest(checkpoint.decoder)
        self._description = run_file.describe(checkpoint, config, corpus, self._world.size)
        previous = run_file.previous(directory, self._description, config)
        kept = partial(FrozenStates, checkpoint.decoder, corpus, digest=self._frozen, directory=directory / FROZEN)
        view = ViewTask(checkpoint, config, corpus, validate, kept if keep_frozen_states else None)
        self._task: Task = view
        self.rows_on_disk, self.frozen_states_on_disk = 0, view.bytes
        if config.head_only:
            head = HeadTask(checkpoint.decoder, config, corpus, self._frozen, directory / ROWS, self._world)
            self._task, self.rows_on_disk = head, head.bytes
        self._stop = False
        self.done = self.rows_total = 0
        self.best: float | None = None
        self._losses = Losses()
        self._metrics = Metrics(directory, writes=self._world.rank == 0)
        self.rewound = False
        self._open(previous)

    @property
    def _head_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self._parameters.items() if of_head(name)]

    def stop(self) -> None:
        """Request the run to end after the current step, with its state saved."""
        self._stop = True

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute what steps need before the first of them, or go on with it: see `Task.prepare`. Ends early after
        `stop`."""
        for done in self._task.prepare():
            yield done
            if self._stop:
                break

    def run(self) -> Iterator[Progress]:
        """Run the remaining steps and save the state. Raises TrainingFailedError; the last saved state stays intact."""
        for _ in self.prepare():
            pass
        # every process asks all others at each step, since signals reach them at different steps
        while self.done < self.config.total_steps and not self._world.any(flag=self._stop):
            if self.done == decay_start(self.config):
                self._save_state(state.STABLE)
            progress = self._step()
            last = self.done == self.config.total_steps
            if last or self.done % self.config.validate_every == 0:
                progress = replace(progress, validation=self._validated())
            self._metrics.add(asdict(progress))
            if last or self._stop or self.done % self.config.save_every == 0:
                self.save()
            yield progress
        self.save()
        self._metrics.close()

    def save(self) -> None:
        """Write the state and the current adapter."""
        self._metrics.flush()
        if self._world.rank == 0 and self.done:
            self._save_state()
            with self._average.applied():
                self._task.calibrate()
                self._save_adapter("last")

    def _save_state(self, name: str = state.STATE) -> None:
        if self._world.rank == 0:
            counters = {
                "done": self.done, "rows_total": self.rows_total, "best": self.best, "losses": asdict(self._losses),
            }  # fmt: skip
            state.save(self.directory, self._parameters, self._optimiser, self._average.tensors, counters, name)

    def _step(self) -> Progress:
        start, config, world = perf_counter(), self.config, self._world
        for group in self._optimiser.param_groups:
            head = any(parameter is group["params"][0] for parameter in self._head_parameters)
            group["lr"] = rate_at(self.done, config, config.head_learning_rate if head else config.learning_rate)
        rate = self._optimiser.param_groups[0]["lr"]
        self._optimiser.zero_grad()
        totals = torch.zeros(2 * config.trained_rows + 2, device=self.checkpoint.decoder.device)
        for number in range(world.rank, config.sequences, world.size):
            batch = self.done * config.sequences + number
            outcome = self._task.outcome(batch)
            self._check(outcome.loss.detach(), batch)
            (outcome.total / config.sequences).backward()
            losses = torch.stack((outcome.loss, outcome.head_loss or outcome.loss * 0)).detach()
            totals += torch.cat((losses / config.sequences, outcome.rows_M, outcome.agreed_M))
        world.sum_gradients(self._parameters.values())
        losses, rows_M, agreed_M = world.sum(totals).split((2, config.trained_rows, config.trained_rows))
        loss, head_loss = losses.tolist()
        # apart, so that a view trains to the same bits with and without a head
        norms = [torch.nn.utils.clip_grad_norm_(g["params"], config.clip) for g in self._optimiser.param_groups]
        norm = torch.stack(norms).max()
        if not torch.isfinite(norm):
            self._fail(f"the gradient is not finite at step {self.done + 1}", batch)
        self._optimiser.step()
        self._losses = self._losses.and_then(loss)
        if self._losses.divergence:
            self._fail(f"{self._losses.divergence} at step {self.done + 1}", batch)
        self.done += 1
        self._average.update(self.done)
        self.rows_total += int(rows_M.sum())
        return Progress(
            self.done, loss, rate, float(norm), int(rows_M.sum()), self.rows_total,
            (agreed_M / rows_M.clamp(min=1)).tolist(), perf_counter() - start,
            head_loss if config.head_units else None,
        )  # fmt: skip

    def _check(self, loss: Tensor, batch: int) -> None:
        if not torch.isfinite(loss):
            self._fail(f"the loss is {float(loss)} at step {self.done + 1}", batch)
        if exploded := self._losses.explosion(float(loss)):
            self._fail(f"{exploded} at step {self.done + 1}", batch)

    def _fail(self, what: str, batch: int) -> None:
        name = f"failed-step-{self.done + 1}.json"
        content = {"what": what, **self._task.batch(batch)}
        write_atomically(self.directory, {name: lambda path: save_json(path, content)})
        raise TrainingFailedError(
            f"{what}; its batch is in {self.directory / name}. The state of the last save is intact: look at the data,"
            f" or start again with --warm-start and a lower --{'head-' if self.config.head_only else ''}learning-rate"
        )

    def _validated(self) -> Validation:
        """Decode the held-out records; save the adapter if it is the best so far."""
        if frozen_digest(self.checkpoint.decoder) != self._frozen:
            raise TrainingFailedError("a frozen weight of the backbone has changed; this is a bug in the trainer")
        with self._average.applied():
            self._task.calibrate()
            validation = self._task.validate()
            if self.best is None or validation.acceptance_length > self.best:
                self.best = validation.acceptance_length
                self._save_adapter("best", validation)
        return validation

    def _save_adapter(self, name: str, validation: Validation | None = None) -> None:
        if self._world.rank == 0:
            provenance = {**self._description, "step": self.done, "supervised_rows": self.rows_total}
            if validation is not None:
                provenance["validation"] = asdict(validation)
            export_adapter(self.checkpoint, self.directory / name, provenance)

    def _open(self, previous: TrainConfig | None) -> None:
        """Start in an empty directory, or resume the run of this one, which had the settings `previous`."""
        if previous is not None:
            self._restore(state.STATE)
            start, before = decay_start(self.config), decay_start(previous)
            if start is not None and before is not None and previous != self.config:
                self._rewind(start, before)
        if previous != self.config and self._world.rank == 0:
            run_file.write(self.directory, self._description)
        self._metrics.truncate(self.done)

    def _restore(self, name: str) -> None:
        counters = state.restore(self.directory, self._parameters, self._optimiser, self._average.tensors, name)
        if counters is not None:
            self.done, self.rows_total, self.best = counters["done"], counters["rows_total"], counters["best"]
            self._losses = Losses(**counters.get("losses", {}))  # states of earlier versions have none

    def _rewind(self, start: int, before: int) -> None:
        """Go back to the state before the decay, if that has begun. `start` and `before`: where the decay of the
        extended run and that of the present one begin. Of both parts of the run, `best/` keeps the best adapter."""
        self.rewound, best = self.done > before, self.best
        if self.rewound:
            self._restore(state.STABLE)
            self.best = best
        if self.done > min(start, before):
            raise ValueError(
                f"{self.directory}: there is no state to extend the run from: its decay would begin after step {start},"
                f" and its earliest state is that of step {self.done}; choose a larger --extend or a smaller"
                " --decay-share"
            )
        if self.rewound:
            self._save_state()
