"""Tokens per second of reading a prompt, in chunks of as many rows as the kernels take."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

from orthrus.bench.gpu.passes import about
from orthrus.bench.gpu.settings import Settings
from orthrus.runner.layout import chunks
from orthrus.runner.runner import Runner

LENGTHS = (512, 4096, 32768)


def measure(settings: Settings, shape: str) -> Iterator[dict[str, Any]]:
    """Yields the result after each length."""
    runner = settings.random_runner(shape)
    result = about(runner) | {"chunk": runner.max_rows, "prompts": []}
    multiplications = sum(linear.shape[0] * linear.shape[1] for linear in _maps(runner))
    for length in (4, 12) if settings.dry_run else LENGTHS:
        times = [_seconds(settings, runner, length) for _ in range(2 if settings.dry_run else 4)]
        seconds = median(times[1:])
        result["prompts"].append({
            "tokens": length, "seconds": seconds, "tokens_per_second": length / seconds,
            "linear_tflops": 2e-12 * multiplications * length / seconds,
        })  # fmt: skip
        yield result


def _maps(runner: Runner) -> list[Any]:
    maps = runner.decoder.linears().items()
    return [linear for name, linear in maps if ".diffusion." not in name and name != "head"]


def _seconds(settings: Settings, runner: Runner, length: int) -> float:
    tables = runner.new_tables(1, length)
    settings.wait()
    start = perf_counter()
    for part in chunks([7] * length, 8 if settings.dry_run else runner.max_rows):
        runner.ar([part], tables, logit_rows=[len(part) - 1])
        tables[0].commit(tables[0].length + len(part))
    settings.wait()
    return perf_counter() - start


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    return ", ".join(
        f"{one['tokens']:,} tokens at {one['tokens_per_second']:,.0f} per second ({one['linear_tflops']:.1f} TFLOP/s)"
        for one in result["prompts"]
    )


def advice(result: dict[str, Any]) -> list[str]:
    """Nothing: there is no aim for prefill yet."""
    del result
    return []
