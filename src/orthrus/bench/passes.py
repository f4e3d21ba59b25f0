"""Time of a pass by rows and context, and the limits that memory bandwidth and arithmetic of this machine set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from orthrus.bench.measure import synchronise
from orthrus.cache import BlockTable
from orthrus.runner.runner import Runner, bytes_of

BUFFER = 2**28
"""Bytes read to measure the memory bandwidth: far more than any processor cache holds."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one kind of pass: median, quartiles, and the ratio to an AR pass of one row at the same context."""

    kind: str
    context: int
    rows: int
    seconds: float
    quartiles: tuple[float, float]
    over_one_row: float


@dataclass(frozen=True)
class Roof:
    """Roofline of the machine. bandwidth: bytes per second read by all threads, measured interleaved with the passes.

    arithmetic: operations per second of the model's largest GEMM; weights: bytes of the linear layers that an AR pass
    reads; floor: seconds to read them.
    """

    bandwidth: float
    arithmetic: float
    weights: int

    @property
    def floor(self) -> float:
        """Minimum seconds of a pass: the time to read its weights."""
        return self.weights / self.bandwidth


def measure(
    runner: Runner, rows: list[int], contexts: list[int], n: int, track: Callable[[range], Iterator[int]]
) -> tuple[list[Pass], float]:
    """Time AR passes at each number of rows and cached tokens, and a diffusion pass at each context, interleaved.

    Every repetition also reads a large buffer, because the memory bandwidth of a shared machine changes within minutes.
    Returns the passes and the median bandwidth in bytes per second.
    """
    buffer = torch.ones(BUFFER // 8, dtype=torch.int64, device=runner.device)
    (table,) = runner.new_tables(1, max(contexts) + max(rows))
    table.reserve(max(contexts) + max(rows))
    width = runner.diffusion.block_size if runner.diffusion else 0
    kinds = [("ar", context, count) for context in contexts for count in sorted({1, *rows})]
    kinds += [("diffuse", context, width) for context in contexts if width]
    times: dict[tuple[str, int, int], list[float]] = {kind: [] for kind in kinds}
    reading = []
    for turn in track(range(n + 2)):
        for kind in kinds:
            seconds = run(runner, table, *kind)
            if turn > 1:
                times[kind].append(seconds)
        reading.append(min(_seconds(runner, buffer.sum) for _ in range(3)))
    measured = [_summary(kind, times[kind], times["ar", kind[1], 1]) for kind in kinds]
    return measured, BUFFER / median(reading[2:])


def run(runner: Runner, table: BlockTable, kind: str, context: int, rows: int) -> float:
    """Seconds of one pass over `rows` rows behind `context` cached tokens."""
    table.commit(context)
    synchronise(runner.device)
    start = perf_counter()
    if kind == "ar":
        runner.ar([[0] * rows], [table])
    else:
        runner.diffuse([0], rows, [table], rows=rows)
    synchronise(runner.device)
    return perf_counter() - start


def _summary(kind: tuple[str, int, int], times: list[float], base: list[float]) -> Pass:
    low, middle, high = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    ratio = median(time / one for time, one in zip(times, base, strict=True))
    return Pass(*kind, middle, (low, high), ratio)


def roof(runner: Runner, bandwidth: float) -> Roof:
    """The roofline from the measured bandwidth and the speed of the model's largest GEMM over 512 rows."""
    linears = [linear for name, linear in runner.decoder.linears().items() if ".diffusion." not in name]
    weights = sum(bytes_of(linear) for linear in linears)
    largest = max(linears, key=lambda linear: linear.shape[0] * linear.shape[1])
    x = torch.ones(512, largest.shape[1], dtype=runner.decoder.dtype, device=runner.device)
    operations = 2 * 512 * largest.shape[0] * largest.shape[1]
    fastest = min(_seconds(runner, lambda: largest(x)) for _ in range(12))
    return Roof(bandwidth, operations / fastest, weights)


def _seconds(runner: Runner, call: Callable[[], Tensor]) -> float:
    start = perf_counter()
    call()
    synchronise(runner.device)
    return perf_counter() - start
