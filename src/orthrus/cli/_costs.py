"""The cost table of `auto` and the load of the machine: what commands that plan or time something say about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orthrus import machine_load
from orthrus.cli._shared import print_warning, status

if TYPE_CHECKING:
    from orthrus.api import Model
    from orthrus.machine_load import LoadWatch

LOCAL = ("localhost", "127.0.0.1", "::1")
IDLE_SECONDS = 0.5
"""Seconds for which the load is read while a server is idle."""
MEASURING = "measuring the cost of passes on this machine (a few seconds)"


def measure_costs(model: Model, *, refresh: bool = False) -> None:
    """Load the cost table of `--cycle auto`, or measure it and say so. Says if other programs disturbed it."""
    with status(MEASURING):
        model.costs(refresh=refresh)
    note_disturbed_costs(model)


def measure_costs_after_answer(model: Model) -> None:
    """Measure the cost table that an answer was planned without. The answer is complete, so Ctrl-C ends the wait."""
    try:
        with status(f"{MEASURING}; Ctrl-C leaves it to the next run"):
            model.costs(refresh=True)
    except KeyboardInterrupt:
        return
    note_disturbed_costs(model)


def measure_costs_for_benchmark(model: Model) -> None:
    """Load the cost table before speeds are measured; measure one that is old or was disturbed again. Without a view
    there is nothing to plan."""
    if model.decoder.diffusion is None:
        return
    with status(MEASURING):
        model.calibration.costs_for_benchmark()
    note_disturbed_costs(model)


def note_disturbed_costs(model: Model) -> None:
    """Say that other programs were busy while passes were timed, and which table is used."""
    costs, newest = model.costs(), model.calibration.newest
    if costs.disturbed:
        print_warning(
            f"note: other programs were busy while passes were timed for the cost table (spread {costs.spread:.2f}), so"
            " `auto` may plan worse than it could; `orthrus doctor --calibrate` times them again"
        )
    elif newest is not None and newest.disturbed:
        print_warning(
            f"note: other programs were busy while passes were timed again (spread {newest.spread:.2f}), so the cost"
            f" table of before stays (spread {costs.spread:.2f})"
        )


@contextmanager
def timed() -> Iterator[LoadWatch]:
    """Watch the load of this machine while the block times something, and say afterwards if other programs disturbed
    it. Processes that the block starts are no other programs, once it has waited for them."""
    from orthrus.torch_threads import kernel_threads

    with machine_load.watch(kernel_threads()) as load:
        yield load
    if load.disturbed:
        print_warning(
            f"note: other programs kept {load.foreign:.1f} of {machine_load.usable_processors()} processors busy"
            " while this was timed, so the figures are worse than on a quiet machine"
        )


@contextmanager
def timed_server(url: str) -> Iterator[LoadWatch]:
    """Watch the load of this machine before and after the block, which times a server on it, and say if other programs
    were busy. While the server works, its load cannot be told from theirs. Of a server elsewhere nothing is known."""
    load = machine_load.LoadWatch()
    local = urlsplit(url).hostname in LOCAL
    before = _idle_load() if local else 0.0
    yield load
    load.foreign = max(before, _idle_load()) if local else 0.0
    processors = machine_load.usable_processors()
    load.disturbance = min(100.0, machine_load.slowdown(load.foreign, processors, processors))
    if load.disturbed:
        print_warning(
            f"note: other programs kept {load.foreign:.1f} of {processors} processors busy while the server had"
            " nothing to do, so the figures are worse than on a quiet machine"
        )


def _idle_load() -> float:
    """The processors that are busy while this process waits."""
    begin = machine_load.read()
    sleep(IDLE_SECONDS)
    return machine_load.foreign_processors(begin, machine_load.read())
