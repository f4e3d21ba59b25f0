"""Processes of training that start in a moment: forks of one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "orthrus.api", "orthrus.bench.measure", "orthrus.cli._training", "orthrus.cli.train",
        "orthrus.training.trainer", "torch._dynamo", "torch.utils.tensorboard", "transformers.models.auto",
        "matplotlib.figure", "matplotlib.backends.backend_agg",
    ]
)  # fmt: skip
"""torch imports its compiler where it makes an optimiser, which takes as long as a hundred steps of a tiny model."""


def run_ranks(line, directory, *, stop_at=None, ranks=2):
    """Run a command line in several processes, with the variables of torchrun; their exit codes. Stderr of each goes to
    `rank-N.txt`. The last process sends itself SIGTERM as it begins its step number `stop_at`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    running = [
        CONTEXT.Process(
            target=_orthrus,
            args=(line, directory, variables | {"RANK": str(rank)}, stop_at if rank == ranks - 1 else None),
            daemon=True,
        )
        for rank in range(ranks)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=240)
    return [process.exitcode for process in running]


def _orthrus(line, directory, variables, stop_at):
    os.chdir(directory)
    os.environ.update(variables)
    with Path(f"rank-{variables['RANK']}.txt").open("wb") as file:
        os.dup2(file.fileno(), 2)
    import torch

    from orthrus import cli
    from orthrus.training.trainer import Trainer

    torch.set_num_threads(1)
    honest = Trainer._step

    def step(trainer):
        if trainer.done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(trainer)

    Trainer._step = step
    sys.argv = ["orthrus", *shlex.split(line)]
    cli.main()
