"""Passes of a model of random weights: by rows, context and executor, against the time to read weights and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch

from orthrus.bench import passes, provenance
from orthrus.bench.gpu.settings import Settings
from orthrus.runner.cuda_graphs import CUDAGraphs
from orthrus.runner.runner import Runner, bytes_of

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (1024, 8192, 40000)
REPEATS, WARM_UP = 12, 3
"""Passes of each kind that count, and those before them: the first two compile kernels and capture a graph."""
COPIED = 2**30
"""Bytes that are copied to measure the bandwidth."""
AIM = 1.25
"""How much longer than its floor a pass over 1 and 32 rows may take."""


def measure(settings: Settings, shape: str) -> Iterator[dict[str, Any]]:
    """Yields the result after each context."""
    runner = settings.random_runner(shape)
    result = about(runner) | {"bandwidth": bandwidth(settings), "passes": []}
    contexts, rows = ((8,), (1,)) if settings.dry_run else (CONTEXTS, ROWS)
    executors = {"eager": runner.eager()}
    if isinstance(runner.executors[0], CUDAGraphs):
        executors["graphs"] = runner
    (table,) = runner.new_tables(1, max(contexts) + max(rows))
    table.reserve(max(contexts) + max(rows))
    repeats = 2 if settings.dry_run else REPEATS
    for context in contexts:
        floor = (result["weights"] + context * result["key_bytes"]) / result["bandwidth"]
        for count in rows:
            for name, own in executors.items():
                times = [passes.run(own, table, "ar", context, count) for _ in range(WARM_UP + repeats)][WARM_UP:]
                low, middle, high = quantiles(times, n=4)
                result["passes"].append({
                    "executor": name, "context": context, "rows": count, "seconds": middle, "quartiles": (low, high),
                    "floor": floor, "over_floor": middle / floor,
                })  # fmt: skip
        yield result
    result["longest_kernels"] = {}
    for count in (1,) if settings.dry_run else (1, 32):
        result["longest_kernels"][str(count)] = kernel_times(runner, settings, count)
        yield result


def about(runner: Runner) -> dict[str, Any]:
    """Which kernels run, under which rules of rows, and what a pass reads."""
    config, rules = runner.config, {}
    weights = 0
    for name, linear in runner.decoder.linears().items():
        if ".diffusion." not in name:
            weights += bytes_of(linear)
            rule = getattr(linear, "rule", None)
            own = {"kernel": getattr(linear, "name", "torch"), "rule": rule and (rule.multiple, rule.max_rows)}
            rules[f"{name.rsplit('.', 1)[-1]} {linear.shape}"] = own
    return {
        "exact": runner.exact, "ragged": runner.ragged, "notice": runner.kernels.notice, "linears": rules,
        "kernels": provenance.kernels(runner), "weights": weights,
        "key_bytes": 2 * config.layers * config.kv_heads * config.head_dim * runner.decoder.dtype.itemsize,
    }  # fmt: skip


def bandwidth(settings: Settings) -> float:
    """Bytes per second of a copy on the device, read and written bytes counted: the best of ten."""
    source = torch.ones((2**20 if settings.dry_run else COPIED) // 4, dtype=torch.int32, device=settings.device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        settings.wait()
        start = perf_counter()
        target.copy_(source)
        settings.wait()
        best = min(best, perf_counter() - start)
    return 2 * source.nbytes / best


def kernel_times(runner: Runner, settings: Settings, rows: int, context: int = 8) -> dict[str, float]:
    """Seconds of the ten longest kernels of an eager pass, by name."""
    eager = runner.eager()
    (table,) = eager.new_tables(1, context + rows)
    table.reserve(context + rows)
    passes.run(eager, table, "ar", context, rows)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if settings.device.startswith("cuda"):
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    times: dict[str, float] = {}
    with suppress(RuntimeError):  # some machines forbid profiling
        with torch.profiler.profile(activities=kinds) as profiler:
            passes.run(eager, table, "ar", context, rows)
        for event in profiler.key_averages():
            spent = getattr(event, "self_device_time_total", 0) or (0 if len(kinds) > 1 else event.self_cpu_time_total)
            times[event.key] = spent / 1e6
    longest = sorted(times.items(), key=lambda item: -item[1])[:10]
    return dict(longest)


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    found = {(p["executor"], p["context"], p["rows"]): p for p in result["passes"]}
    best = "graphs" if any(executor == "graphs" for executor, *_ in found) else "eager"
    first = min(context for _, context, _ in found)
    cells = [
        f"{rows} rows {1e3 * p['seconds']:.2f} ms ({p['over_floor']:.2f} x floor)"
        for (executor, context, rows), p in found.items()
        if executor == best and context == first and rows in (1, 32, 128)
    ]
    return f"{best}, {first} tokens: {', '.join(cells)}; {result['bandwidth'] / 1e9:,.0f} GB/s; {result['kernels']}"


def advice(result: dict[str, Any]) -> list[str]:
    """What to look at."""
    slow = [p for p in result["passes"] if p["executor"] == "graphs" and p["rows"] in (1, 32) and p["over_floor"] > AIM]
    lines = []
    if slow:
        worst = max(slow, key=lambda p: p["over_floor"])
        lines.append(
            f"a pass over {worst['rows']} rows at {worst['context']} tokens takes {worst['over_floor']:.2f} x its floor"
            f" ({AIM} is the aim): see `longest_kernels` of this file, and `linears` for the rules of rows"
        )
    if not result["exact"]:
        lines.append("no layout of rows keeps all bits: see `linears`; output is then not bit-identical")
    if result["notice"]:
        lines.append(result["notice"])
    return lines
