"""Where the time of an AR pass goes, by kind of operation: the executor is wrapped, or replaced by one with clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from time import perf_counter
from typing import Any, cast

from orthrus.backends.interface import Kernels
from orthrus.batch import ForwardBatch
from orthrus.bench.passes import run
from orthrus.runner.eager import EagerExecutor
from orthrus.runner.executor import Executor, PassResult
from orthrus.runner.native import NativeForward
from orthrus.runner.runner import Runner

LABELS = {
    "add_norm": "norms",
    "rope_and_cache_write": "rope and cache write",
    "attend": "attention",
    "gate": "gate",
}
"""Kernels with a clock, and what their time is counted as."""


def profile(runner: Runner, rows: int, context: int, n: int) -> dict[str, float]:
    """Seconds of an AR pass by kind of kernel; `between kernels` is the time outside of all kernels."""
    (table,) = runner.new_tables(1, context + rows)
    table.reserve(context + rows)
    for _ in range(2):
        run(runner, table, "ar", context, rows)
    clock = Clock()
    with _timed(runner, clock) as timed:
        total = sum(run(timed, table, "ar", context, rows) for _ in range(n))
    clock.seconds["between kernels"] = total - sum(clock.seconds.values())
    return {name: seconds / n for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])}


@dataclass
class Clock:
    """Seconds by label."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, label: str, seconds: float) -> None:
        """Enter what one call took."""
        self.seconds[label] = self.seconds.get(label, 0.0) + seconds

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time entered."""

        @wraps(function)
        def call(*arguments: Any) -> Any:
            start = perf_counter()
            result = function(*arguments)
            self.add(label, perf_counter() - start)
            return result

        return call


@dataclass(frozen=True)
class _ProfiledForward:
    """The native executor, which measures its phases itself."""

    forward: NativeForward
    clock: Clock

    def run(self, batch: ForwardBatch) -> PassResult:
        return self.forward.profile(batch, self.clock.seconds)


class _TimedKernels:
    """Kernels with clocks around those of `LABELS`."""

    def __init__(self, kernels: Kernels, clock: Clock) -> None:
        self._kernels, self._clock = kernels, clock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._kernels, name)
        return self._clock.timed(LABELS[name], method) if name in LABELS else method


@contextmanager
def _timed(runner: Runner, clock: Clock) -> Iterator[Runner]:
    """A runner with clocks. A recorded CUDA graph calls no kernels, so there the eager executor is timed."""

    def wrap(executor: Executor) -> Executor:
        if isinstance(executor, NativeForward):
            return _ProfiledForward(executor, clock)
        attention = replace(runner.attention, attend=clock.timed("attention", runner.attention.attend))
        kernels = cast(Kernels, _TimedKernels(runner.kernels, clock))
        return EagerExecutor(runner.decoder, kernels, attention, runner.draft_weights)

    native = any(isinstance(executor, NativeForward) for executor in runner.executors)
    hooks = [] if native else _hooks(runner, clock)
    try:
        yield runner.with_executors(wrap)
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(runner: Runner, clock: Clock) -> list[Any]:
    """Clocks around the linear maps."""
    hooks: list[Any] = []
    for name, linear in runner.decoder.linears().items():
        label, started = name.rsplit(".", 1)[-1], [0.0]

        def before(*_: Any, started: list[float] = started) -> None:
            started[0] = perf_counter()

        def after(*_: Any, label: str = label, started: list[float] = started) -> None:
            clock.add(label, perf_counter() - started[0])

        hooks += [linear.register_forward_pre_hook(before), linear.register_forward_hook(after)]
    return hooks
