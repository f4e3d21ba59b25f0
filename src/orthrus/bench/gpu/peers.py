"""Plain decoding and `auto` beside another system on the same weights, greedily, at batch 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from orthrus.api import Options
from orthrus.bench import compare, exactness, provenance, tasks
from orthrus.bench.gpu.settings import AbsentError, Settings


def measure(settings: Settings, peer: str) -> Iterator[dict[str, Any]]:
    """Yields the result once. peer: the module of the peer, and the beginning of the name of its variant."""
    if find_spec(peer) is None:
        raise AbsentError(f"{peer} is not installed")
    model = settings.load()
    options: Options = {"max_new_tokens": 4 if settings.dry_run else 128, "temperature": 0.0, "seed": 0}
    prompts = tasks.load("gsm8k", 1 if settings.dry_run else 8)
    (first, *_) = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
    with compare.started(model, options, compare.Peers([f"{peer} bf16"]), first) as systems:
        measured = compare.measure(systems, "gsm8k", prompts, lambda items: items)
    yield {"systems": [asdict(system) for system in measured], "provenance": provenance.of_run(model)}


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    return ", ".join(
        f"{one['name']} {one['speed']:,.0f}" if one["absent"] is None else f"{one['name']}: {one['absent'][-120:]}"
        for one in result["systems"]
    ) + " tokens/s"  # fmt: skip


def advice(result: dict[str, Any]) -> list[str]:
    """Where the peer is faster."""
    return [
        f"{one['name']} is {1 / one['ours_over']:.2f} x as fast as auto"
        for one in result["systems"]
        if one["absent"] is None and one["ours_over"] < 1 and not one["name"].startswith("orthrus")
    ]
