"""`orthrus bench engine`: requests that come and go, uneven batches, and the turns of a chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from orthrus.cli._costs import measure_costs_for_benchmark, timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    CycleOption,
    Dtype,
    DtypeOption,
    ModelOption,
    load_model,
    progress,
    table_console,
    without_none,
)

if TYPE_CHECKING:
    from orthrus.api import Options


def command(
    model: ModelOption = "smollm2-demo",
    count: Annotated[int, typer.Option(help="Requests, and sequences of the uneven batch.", min=2)] = 16,
    every: Annotated[float, typer.Option(help="Seconds between two requests.", min=0.0)] = 0.15,
    batch_size: Annotated[int, typer.Option(help="Maximum sequences per pass.", min=1)] = 8,
    context: Annotated[int, typer.Option(help="Tokens of the long prompt and of the chat's history.", min=40)] = 2000,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 64,
    cycle: CycleOption = None,
    n: Annotated[int, typer.Option("-n", help="Repetitions; medians are shown.", min=1)] = 5,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Serve requests that arrive over time, decode short sequences beside a long one, answer two turns of a chat."""
    from orthrus.bench import engine, provenance

    loaded = load_model(model, None, dtype, "cpu")
    options: Options = without_none(  # type: ignore[assignment]
        cycle=cycle, batch_size=batch_size, max_new_tokens=max_new_tokens, seed=0
    )
    if loaded.decoding_config(options).cycle == "auto":
        measure_costs_for_benchmark(loaded)
    kinds: dict[str, Callable[[], Any]] = {
        "arrivals": lambda: engine.arrivals(loaded, options, count, every),
        "uneven batch": lambda: engine.uneven(loaded, options, batch_size, context),
        "chat": lambda: engine.chat(loaded, options, context),
    }
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with timed() as load:
        for _ in progress(range(n), "repetitions"):
            for kind, run in kinds.items():
                measured[kind].append(asdict(run()))
    if as_json:
        record = {"engine": measured, "provenance": provenance.of_run(loaded) | load.as_dict()}
        print(json.dumps(record, indent=2))
        return
    table = Table(title=f"{model}, {dtype.value}, median of {n} (lowest to highest)")
    for column in ("", "figure", "value"):
        table.add_column(column)
    for kind, runs in measured.items():
        for name in runs[0]:
            values = [run[name] for run in runs]
            spread = f" ({min(values):,.3g} to {max(values):,.3g})" if min(values) < max(values) else ""
            table.add_row(kind, name.replace("_", " "), f"{median(values):,.4g}{spread}")
    table_console().print(table)
