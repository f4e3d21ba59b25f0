"""The cost table of `auto` and the load of the machine: what commands that plan or time something say about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orthrus import machine_load
from orthrus.cli._shared import print_warning, status

if TYPE_CHECKING:
    from orthrus.api import Model
    from orthrus.machine_load import LoadWatch

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
