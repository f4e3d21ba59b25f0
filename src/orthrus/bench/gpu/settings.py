"""The settings of a run, and the models that its parts measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from orthrus.backends.interface import MAX_ROWS, AttentionChoice, RowRule
from orthrus.backends.select import masked
from orthrus.bench import shapes
from orthrus.runner.cuda_graphs import CUDAGraphs
from orthrus.runner.eager import EagerExecutor
from orthrus.runner.executor import PassResult
from orthrus.runner.runner import Runner

if TYPE_CHECKING:
    from orthrus.api import Model


class AbsentError(Exception):
    """This machine lacks what a part needs."""


@dataclass(frozen=True)
class Settings:
    """device: where passes run. model: the checkpoint of the parts that decode or train. output: the folder of the
    results; `work` in it holds data and views. seconds: the time limit of the part. dry_run: tiny shapes, on the CPU,
    with Triton's interpreter."""

    output: Path
    device: str = "cuda"
    model: str = "smollm2-demo"
    seconds: float = 600.0
    dry_run: bool = False

    @property
    def work(self) -> Path:
        """The folder of everything that is not a result."""
        return self.output / "work"

    def load(self) -> Model:
        """The checkpoint, ready to decode."""
        import orthrus

        return orthrus.load(self.model, device=self.device)

    def random_runner(self, shape: str) -> Runner:
        """A model of random weights. Raises AbsentError if this is a dry run and there is no Triton."""
        if not self.dry_run:
            return shapes.random_runner(shape, torch.bfloat16, device=self.device)
        try:
            from orthrus.backends.triton.kernels import TritonKernels
        except ImportError as error:
            raise AbsentError("Triton is not installed") from error
        kernels, decoder = TritonKernels(), shapes.random_decoder(shapes.TINY, torch.float32, block_size=4)
        attention = AttentionChoice(masked(kernels), RowRule(1, MAX_ROWS), 64, single_row=True, ragged=True)
        runner = Runner(decoder, kernels, attention)
        graphs = CUDAGraphs(EagerExecutor(decoder, kernels, attention, runner.draft_weights), run_again)
        return runner.with_executors(lambda _: graphs)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


def run_again(work: Callable[[], PassResult]) -> tuple[PassResult, Callable[[], None]]:
    """Stands in for the capture of a CUDA graph in a dry run: a replay runs the work again."""
    results = work()

    def replay() -> None:
        for old, new in zip(results, work(), strict=True):
            old.copy_(new)

    return results, replay
