"""What a pass costs by rows and context, beside what memory and arithmetic of this very machine allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from orthrus.cache import KVCache
from orthrus.model.decoder import Decoder

BUFFER = 2**28
"""Bytes read to find the memory bandwidth: far more than any cache holds."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one kind of pass: the median and quartiles of n, and over an AR pass of one row at this context."""

    kind: str
    context: int
    rows: int
    seconds: float
    quartiles: tuple[float, float]
    over_one_row: float


@dataclass(frozen=True)
class Roof:
    """bandwidth: bytes a second read by all threads, in turn with the passes; arithmetic: operations a second in the
    model's own products.

    weights: bytes of the linear maps that an AR pass reads; floor: seconds to read them.
    """

    bandwidth: float
    arithmetic: float
    weights: int

    @property
    def floor(self) -> float:
        """Seconds that a pass takes at least."""
        return self.weights / self.bandwidth


def measure(
    decoder: Decoder, rows: list[int], contexts: list[int], n: int, track: Callable[[range], Iterator[int]]
) -> tuple[list[Pass], float]:
    """AR passes of so many rows at so many cached tokens, and a diffusion pass at each context, all of them in turn.

    In every turn a large buffer is read too: the median of its bytes a second is returned beside them. A shared
    machine's memory is faster at one minute than at another.
    """
    buffer = torch.ones(BUFFER // 8, dtype=torch.int64, device=decoder.device)
    cache = decoder.new_cache(1)
    cache.reserve(max(contexts) + max(rows))
    width = decoder.diffusion.block_size if decoder.diffusion else 0
    kinds = [("ar", context, count) for context in contexts for count in sorted({1, *rows})]
    kinds += [("diffuse", context, width) for context in contexts if width]
    times: dict[tuple[str, int, int], list[float]] = {kind: [] for kind in kinds}
    reading = []
    for turn in track(range(n + 2)):
        for kind in kinds:
            seconds = _run(decoder, cache, *kind)
            if turn > 1:
                times[kind].append(seconds)
        reading.append(min(_seconds(decoder, buffer.sum) for _ in range(3)))
    found = [_summary(kind, times[kind], times["ar", kind[1], 1]) for kind in kinds]
    return found, BUFFER / median(reading[2:])


def _run(decoder: Decoder, cache: KVCache, kind: str, context: int, rows: int) -> float:
    cache.commit(0, context)
    tokens = torch.zeros(1, rows, dtype=torch.long, device=decoder.device)
    _wait(decoder)
    start = perf_counter()
    if kind == "ar":
        decoder.ar(tokens, cache.window(0, 1))
    else:
        decoder.diffuse([0], rows, cache.window(0, 1), rows)
    _wait(decoder)
    return perf_counter() - start


def _wait(decoder: Decoder) -> None:
    if decoder.device.type == "cuda":
        torch.cuda.synchronize(decoder.device)


def _summary(kind: tuple[str, int, int], times: list[float], base: list[float]) -> Pass:
    low, middle, high = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    ratio = median(time / one for time, one in zip(times, base, strict=True))
    return Pass(*kind, middle, (low, high), ratio)


def roof(decoder: Decoder, bandwidth: float) -> Roof:
    """The machine's limits: its memory's, as measured in turn, and the model's own largest product over 512 rows."""
    linears = [linear for name, linear in decoder.linears().items() if ".diffusion." not in name]
    weights = sum(linear.stored_bytes for linear in linears)
    largest = max(linears, key=lambda linear: linear.shape[0] * linear.shape[1])
    x = torch.ones(512, largest.shape[1], dtype=decoder.dtype, device=decoder.device)
    operations = 2 * 512 * largest.shape[0] * largest.shape[1]
    fastest = min(_seconds(decoder, lambda: largest(x)) for _ in range(12))
    return Roof(bandwidth, operations / fastest, weights)


def _seconds(decoder: Decoder, call: Callable[[], Tensor]) -> float:
    start = perf_counter()
    call()
    _wait(decoder)
    return perf_counter() - start


def profile(decoder: Decoder, rows: int, context: int, n: int) -> dict[str, float]:
    """Where the seconds of an AR pass go, by kind of work; what no kernel accounts for is `between kernels`."""
    cache = decoder.new_cache(1)
    cache.reserve(context + rows)
    spent: dict[str, float] = {}
    for _ in range(2):
        _run(decoder, cache, "ar", context, rows)
    with _timed(decoder, spent):
        total = sum(_run(decoder, cache, "ar", context, rows) for _ in range(n))
    spent["between kernels"] = total - sum(spent.values())
    return {name: seconds / n for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}


@contextmanager
def _timed(decoder: Decoder, spent: dict[str, float]) -> Iterator[None]:
    """Clocks around the decoder's kernels, as long as this is open."""

    def clocked(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any) -> Any:
            start = perf_counter()
            result = function(*arguments)
            spent[label] = spent.get(label, 0.0) + perf_counter() - start
            return result

        return run

    kernels, attention, graphs = decoder.kernels, decoder.attention, decoder.graphs
    decoder.graphs = None  # what is replayed calls nothing
    stack = decoder.fused[False]  # keeps clocks of its own
    names = {} if stack else {"add_norm": "norms", "place": "rotation and cache", "gate": "gate"}
    linears = {} if stack else decoder.linears()
    for method, label in names.items():
        setattr(kernels, method, clocked(label, getattr(kernels, method)))
    for name, linear in linears.items():
        label = "head" if name == "head" else f"product {name.rsplit('.', 1)[-1]}"
        linear.forward = clocked(label, linear.forward)  # type: ignore[method-assign]
    object.__setattr__(attention, "attend", clocked("attention", attention.attend))
    try:
        with stack.clocked(spent) if stack else nullcontext():
            yield
    finally:
        decoder.graphs = graphs
        for method in names:
            delattr(kernels, method)
        for linear in linears.values():
            del linear.forward
        object.__setattr__(attention, "attend", attention.attend.__wrapped__)  # type: ignore[attr-defined]
