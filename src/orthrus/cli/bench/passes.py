"""`orthrus bench passes`: time per pass, and time per kind of kernel."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._costs import timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    AdapterOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    Quantize,
    QuantizeOption,
    load_model,
    progress,
    quiet,
    stderr,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.bench.passes import Pass, Roof


def command(
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a real shape instead: qwen3-0.6b, -1.7b, -4b, -8b.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Use only this many layers of that shape, if the whole model does not fit.", min=1),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(help="Rows per pass; may be repeated.", show_default="1, 2, 4, ... 128", min=1)
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(help="Cached tokens; may be repeated.", show_default="128, 1024", min=0)
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Interleaved repetitions, after two for warm-up.", min=1)] = 15,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure milliseconds per pass by rows and context, and the time to read the weights on this machine."""
    from orthrus.api import DTYPES
    from orthrus.bench import passes, provenance, shapes
    from orthrus.bench.profile import profile

    if layers is not None and shape is None:
        raise ValueError("--layers needs --shape: a checkpoint always runs with all its layers")
    name = f"{shape or model}{f', {layers} layers' if layers else ''}"
    if shape is None:
        runner = load_model(model, adapter, dtype, device, quantize=quantize, cache=cache).runner
    else:
        quiet()
        with stderr.status(f"random weights of the shape of {shape}"):
            int8 = quantize is Quantize.int8
            runner = shapes.random_runner(shape, DTYPES[dtype.value], layers=layers, device=device, int8=int8)
    counts, contexts = rows or [1, 2, 4, 8, 16, 32, 64, 128], context or [128, 1024]
    if max(counts) > runner.max_rows or min(counts) < 1:
        raise ValueError(f"a pass of this model has 1 to {runner.max_rows} rows")
    if max(contexts) + max(counts) > runner.config.max_positions:
        raise ValueError(f"this model has {runner.config.max_positions} positions: fewer cached tokens, please")
    with timed() as load:
        track = partial(progress, label="passes")
        measured, bandwidth = passes.measure(runner, counts, contexts, n, track)
        limits = passes.roof(runner, bandwidth)
        profiles = {count: profile(runner, count, contexts[0], n) for count in sorted({1, min(16, max(counts))})}
    if as_json:
        record = {
            "passes": [asdict(one) for one in measured], "roof": asdict(limits) | {"floor": limits.floor},
            "profiles": profiles, "provenance": provenance.of_runner(runner, name) | load.as_dict(),
        }  # fmt: skip
        print(json.dumps(record, indent=2))
        return
    _print(measured, limits, f"{name}, {dtype.value}{f', {quantize.value}' if quantize else ''}; n = {n}, interleaved")
    table_console().print(f"GEMM: {provenance.kernels(runner)}")
    _print_profiles(profiles, contexts[0])


def _print(measured: list[Pass], limits: Roof, title: str) -> None:
    table = Table(title=title)
    for column in ("pass", "context", "rows", "ms (quartiles)", "x one row", "x reading the weights"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for one in measured:
        low, high = (1e3 * value for value in one.quartiles)
        table.add_row(
            one.kind, f"{one.context:,}", str(one.rows), f"{1e3 * one.seconds:.2f} ({low:.2f}-{high:.2f})",
            f"{one.over_one_row:.2f}", f"{one.seconds / limits.floor:.2f}",
        )  # fmt: skip
    console = table_console()
    console.print(table)
    console.print(
        f"reading {limits.weights / 1e6:.0f} MB of weights at {limits.bandwidth / 1e9:.1f} GB/s (median, interleaved)"
        f" takes {1e3 * limits.floor:.2f} ms; GEMM reaches {limits.arithmetic / 1e9:,.0f} GFLOP/s"
    )


def _print_profiles(profiles: dict[int, dict[str, float]], context: int) -> None:
    table = Table(title=f"where an AR pass spends its milliseconds, {context:,} tokens of context")
    table.add_column("")
    for count in profiles:
        table.add_column(f"{count} rows" if count > 1 else "1 row", justify="right")
    for name in next(iter(profiles.values())):
        table.add_row(name, *[f"{1e3 * profile.get(name, 0.0):.2f}" for profile in profiles.values()])
    table.add_row("total", *[f"{1e3 * sum(profile.values()):.2f}" for profile in profiles.values()])
    table_console().print(table)
