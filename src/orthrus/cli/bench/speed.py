"""`orthrus bench speed`: wall-clock speed of the cycles."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._costs import measure_costs_for_benchmark, timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    TASK,
    AdapterOption,
    AllowOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    check_plot,
    load_model,
    print_warning,
    progress,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.speed import Speed


def command(
    task: Annotated[list[str], typer.Option(help=TASK)],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts per task.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="CYCLE[:BLOCKS][/WIDTH][+NODES], such as auto, two-pass/4, two-pass+16 or one-pass:2/6+12: at most 2"
            " blocks a pass, of 6 rows, and trees of 12 drafts. May be repeated; the first setting is the baseline.",
            show_default="ar, two-pass, one-pass, auto; without a view ar",
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="exact or rejection; see generate.")] = "exact",
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; each further prompt adds 1.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Plot expected and measured speed into this PNG.")] = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure tokens per second of the cycles at batch 1. Settings are interleaved per prompt."""
    from orthrus.bench import provenance, tasks
    from orthrus.bench import speed as speeds
    from orthrus.options import Settings

    check_plot(plot)
    for name in setting or ():
        Settings.of(speeds.options_of(name))
    prompts = {name: tasks.load(name, limit) for name in task}
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache=cache)
    settings = setting or list(speeds.SETTINGS if loaded.decoder.diffusion else speeds.SETTINGS[:1])
    if loaded.decoder.diffusion is None:
        print_warning("note: this checkpoint has no diffusion view, so its plain decoding is measured")
    for name in settings:
        loaded.decoding_config(speeds.options_of(name))
    measure_costs_for_benchmark(loaded)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "rule": rule}
    measured = []
    with timed() as load:
        for name, asked in prompts.items():
            track = partial(progress, label=name)
            measured += speeds.measure_settings(loaded, name, asked, options, settings, track)
    for doubt in speeds.doubts(measured):
        print_warning(f"note: {doubt}")
    if plot is not None:
        speeds.plot(measured, plot)
    if as_json:
        record = {"speed": speeds.as_records(measured), "provenance": provenance.of_run(loaded) | load.as_dict()}
        print(json.dumps(record, indent=2))
        return
    _print_speed(measured, loaded.checkpoint.view)


def _print_speed(measured: list[Speed], view: str) -> None:
    speeds = Table(title=f"batch 1, settings interleaved per prompt; medians (quartiles); diffusion view: {view}")
    details = Table(title="acceptance, latency, memory")
    for table, columns in (
        (speeds, ("tokens/s", "expected by the cost table", f"x {measured[0].setting}", "same tokens")),
        (details, ("A", "TPF", "rows per pass", "first token, ms", "cycle latency, ms: p50 / p99", "peak memory, MB")),
    ):
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
    for row in measured:
        name, last = f"{row.part}: {row.setting}", row.setting == measured[-1].setting
        speeds.add_row(
            name, f"{row.speed:.1f} ({row.quartiles[0]:.0f}-{row.quartiles[1]:.0f})", f"{row.expected:.1f}",
            f"{row.over_plain:.2f} ({row.over_plain_quartiles[0]:.2f}-{row.over_plain_quartiles[1]:.2f})",
            f"{row.identical} of {row.prompts}", end_section=last,
        )  # fmt: skip
        details.add_row(
            name, f"{row.acceptance_length:.2f}", f"{row.tpf:.2f}", f"{row.rows_per_pass:.1f}",
            f"{1e3 * row.first_token:.0f}", f"{1e3 * row.between[0]:.1f} / {1e3 * row.between[1]:.1f}",
            f"{row.peak / 1e6:,.0f}", end_section=last,
        )  # fmt: skip
    console = table_console()
    console.print(speeds)
    console.print(details)
