"""`orthrus bench compare`: against what one could run instead."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli._shared import (
    AdapterOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    load_model,
    progress,
    stderr,
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.compare import Side


def command(
    task: Annotated[list[str] | None, typer.Option(help="Task name or JSONL file; may be repeated.")] = None,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts of every task.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt, at most.", min=1)] = 128,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Variant of a peer, or the start of its name; may be repeated.", show_default="all"),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Make the peers' own environments first.")] = False,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and provenance as JSON.")] = False,
) -> None:
    """Tokens a second of plain decoding and `auto` beside transformers and llama.cpp: same prompts, weights, threads.

    Greedy, batch 1, prefill included, every prompt on every side in turn. Peers run in processes of their own; one that
    is not there is reported as absent.
    """
    from orthrus.bench import compare, provenance, tasks

    known = compare.variants()
    chosen = [
        name for name in known
        if peer is None or any(name == asked or (asked not in known and name.startswith(asked)) for asked in peer)
    ]  # fmt: skip
    if not chosen:
        raise ValueError(f"no such peer; there are: {'; '.join(known)}")
    if install:
        for name in sorted({known[variant] for variant in chosen}):
            with stderr.status(f"installing {name}: some minutes where it must be compiled"):
                compare.install(name)
        if task is None:
            return
    prompts = {name: tasks.load(name, limit) for name in task or ()}
    if not prompts:
        raise ValueError("which prompts? --task gsm8k, for instance")
    loaded = load_model(model, adapter, dtype, device, quantize=quantize)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0}
    found = []
    for name, asked in prompts.items():
        found += compare.measure(loaded, asked, options, chosen, partial(progress, label=name))
    if as_json:
        print(
            json.dumps({"sides": [asdict(side) for side in found], "provenance": provenance.of_run(loaded)}, indent=2)
        )
        return
    _print(found, f"{dtype.value}{', int8' if quantize else ''}; medians over prompts (quartiles), all sides in turn")


def _print(found: list[Side], title: str) -> None:
    table = Table(title=title)
    for column in ("part", "side", "tokens/s", "auto is faster by", "first token, ms", "same tokens as ar"):
        table.add_column(column, justify="left" if column in ("part", "side") else "right")
    for side in found:
        if side.absent is None:
            (low, high), (least, most) = side.quartiles, side.ours_over_quartiles
            table.add_row(
                f"{side.part} ({side.prompts})", side.name, f"{side.speed:.1f} ({low:.0f}-{high:.0f})",
                f"{side.ours_over:.2f} ({least:.2f}-{most:.2f})", f"{1e3 * side.first_token:.0f}",
                f"{side.identical} of {side.prompts}",
            )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    for side in found:
        if side.absent is not None:
            console.print(f"absent: {side.name}: {side.absent.splitlines()[-1]} (--install makes its environment)")
