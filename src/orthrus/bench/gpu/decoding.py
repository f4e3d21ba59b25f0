"""Tokens per second of plain decoding and of each cycle, by batch size, and whether all give the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from orthrus.api import Model, Options
from orthrus.bench import exactness, provenance, tasks
from orthrus.bench.gpu.settings import Settings
from orthrus.decoding.sequence import Request, Sequence

CYCLES = ("ar", "two-pass", "one-pass", "auto")
BATCHES = (1, 4, 16, 64)
ALONE = 4
"""Prompts that are decoded one after another at batch size 1."""


def measure(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields the result after each batch size."""
    model = settings.load()
    new = 4 if settings.dry_run else 128
    result: dict[str, Any] = {"provenance": provenance.of_run(model), "max_new_tokens": new, "runs": []}
    for batch in (1, 2) if settings.dry_run else BATCHES:
        prompts = tasks.load("gsm8k", (1 if settings.dry_run else ALONE) if batch == 1 else batch)
        plain: list[list[int]] = []
        for cycle in CYCLES:
            options: Options = {"cycle": cycle, "batch_size": batch, "max_new_tokens": new, "seed": 0}
            requests = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
            _decode(model, requests, options)  # compiles kernels and captures graphs
            start = perf_counter()
            done = _decode(model, requests, options)
            run = _summary(done, perf_counter() - start)
            plain = plain or [sequence.tokens for sequence in done]
            run["identical"] = sum(one == s.tokens for one, s in zip(plain, done, strict=True))
            result["runs"].append({"batch": batch, "cycle": cycle, "prompts": len(prompts), **run})
        yield result


def _decode(model: Model, requests: list[Request], options: Options) -> list[Sequence]:
    steps = model.run(requests, model.decoding_config(options))
    done = [step.sequence for step in steps if step.finish_reason is not None]
    return sorted(done, key=lambda sequence: sequence.index)


def _summary(done: list[Sequence], seconds: float) -> dict[str, Any]:
    statistics = [sequence.statistics for sequence in done]
    tokens, passes = sum(s.generated for s in statistics), sum(s.passes for s in statistics)
    cycles = max(1, sum(sum(s.cycles.values()) for s in statistics))
    return {
        "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "tpf": tokens / passes,
        "acceptance_length": sum(sum(s.accepted) for s in statistics) / cycles,
        "rows_per_pass": sum(s.rows for s in statistics) / max(1, passes - len(done)),
    }  # fmt: skip


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    lines = []
    for batch in sorted({run["batch"] for run in result["runs"]}):
        speeds = {run["cycle"]: run["tokens_per_second"] for run in result["runs"] if run["batch"] == batch}
        lines.append(f"batch {batch}: " + ", ".join(f"{cycle} {speed:,.0f}" for cycle, speed in speeds.items()))
    return "tokens/s: " + "; ".join(lines)


def advice(result: dict[str, Any]) -> list[str]:
    """Tokens that differ, and batch sizes at which `auto` is not the fastest."""
    lines = []
    for run in result["runs"]:
        if run["identical"] < run["prompts"]:
            lines.append(
                f"{run['cycle']} at batch {run['batch']}: {run['prompts'] - run['identical']} of {run['prompts']}"
                " answers differ from plain decoding: a defect; run `orthrus verify --device cuda`"
            )
    for batch in sorted({run["batch"] for run in result["runs"]}):
        speeds = {run["cycle"]: run["tokens_per_second"] for run in result["runs"] if run["batch"] == batch}
        best = max(speeds, key=lambda cycle: speeds[cycle])
        if speeds["auto"] < 0.95 * speeds[best]:
            lines.append(
                f"batch {batch}: auto is {speeds['auto'] / speeds[best]:.2f} x {best}: compare what `orthrus generate"
                " --plan` expects with what it takes"
            )
    return lines
