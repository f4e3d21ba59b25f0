"""`orthrus bench compare`: speed against transformers, llama.cpp and vLLM."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._costs import measure_costs_for_benchmark, timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    AdapterOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    ended_by_sigterm,
    load_model,
    progress,
    stderr,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.compare import System


def command(
    task: Annotated[list[str] | None, typer.Option(help="Task name or JSONL file; may be repeated.")] = None,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts per task.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 128,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Peer variant, or the beginning of its name; may be repeated.", show_default="all"),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="First create the peers' virtual environments.")] = False,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure tokens per second of plain decoding, `auto` and peers with the same prompts, weights and threads.

    Decoding is greedy at batch 1, prefill included; systems are interleaved per prompt. Each peer runs in its own
    process; a peer that is not installed, or that cannot read the backbone, is reported as absent. Without a diffusion
    view plain decoding alone is compared with the peers.
    """
    from orthrus.bench import compare, provenance, tasks

    chosen = _chosen(peer)
    if install:
        _install(chosen)
        if task is None:
            return
    prompts = {name: tasks.load(name, limit) for name in task or ()}
    if not prompts:
        raise ValueError("no prompts: name at least one task, such as --task gsm8k")
    loaded = load_model(model, adapter, dtype, device, quantize=quantize, cache=cache)
    measure_costs_for_benchmark(loaded)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0}
    systems: list[System] = []
    tell = partial(stderr.print, style="dim", markup=False)
    if loaded.decoder.diffusion is None:
        stderr.print("note: this checkpoint has no diffusion view, so its plain decoding is compared", style="yellow")
    with ended_by_sigterm(), timed() as load:
        for name, asked in prompts.items():
            track = partial(progress, label=f"{name}: answers")
            systems += compare.measure(loaded, name, asked, options, chosen, track, tell)
    if as_json:
        record = {
            "sides": [asdict(system) for system in systems],
            "provenance": provenance.of_run(loaded) | load.as_dict(),
        }
        print(json.dumps(record, indent=2))
        return
    precision = f"{dtype.value}{', int8' if quantize else ''}"
    title = f"{precision}; medians over prompts (quartiles), systems interleaved per prompt"
    _print(systems, title, fastest=compare.ours(loaded)[-1])


def _chosen(peers: list[str] | None) -> list[str]:
    """The variants that these names, or beginnings of names, mean; without names all. Raises ValueError for none."""
    from orthrus.bench import compare

    known = compare.variants()
    chosen = [
        name for name in known
        if peers is None or any(name == asked or (asked not in known and name.startswith(asked)) for asked in peers)
    ]  # fmt: skip
    if not chosen:
        raise ValueError(f"no such peer; peers: {'; '.join(known)}")
    return chosen


def _install(chosen: list[str]) -> None:
    from orthrus.bench import compare

    known = compare.variants()
    for name in sorted({known[variant] for variant in chosen}):
        with ended_by_sigterm(), stderr.status(f"installing {name}: takes some minutes if it must be compiled"):
            compare.install(name)


def _print(systems: list[System], title: str, fastest: str) -> None:
    table = Table(title=title)
    for column in ("part", "system", "tokens/s", f"speedup of {fastest}", "first token, ms", "same tokens as ar"):
        table.add_column(column, justify="left" if column in ("part", "system") else "right")
    for system in systems:
        if system.absent is None:
            (low, high), (ratio_low, ratio_high) = system.quartiles, system.ours_over_quartiles
            table.add_row(
                f"{system.part} ({system.prompts})", system.name, f"{system.speed:.1f} ({low:.0f}-{high:.0f})",
                f"{system.ours_over:.2f} ({ratio_low:.2f}-{ratio_high:.2f})", f"{1e3 * system.first_token:.0f}",
                f"{system.identical} of {system.prompts}",
            )  # fmt: skip
    console = table_console()
    console.print(table)
    for system in systems:
        if system.absent is not None:
            console.print(
                f"absent: {system.name}: {system.absent.splitlines()[-1]} (--install creates its environment)"
            )
