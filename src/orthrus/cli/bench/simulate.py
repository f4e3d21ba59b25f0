"""`orthrus bench simulate`: a performance model of a large GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from orthrus.cli._shared import check_plot, table_console


def command(
    shape: Annotated[str, typer.Option(help="qwen3-0.6b, -1.7b, -4b or -8b.")] = "qwen3-8b",
    acceptance: Annotated[
        list[float] | None,
        typer.Option(
            help="Acceptance length A of two-pass cycles with a block of 32; may be repeated.", show_default="6 to 12"
        ),
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(help="Rows per block; may be repeated.", show_default="8, 16, 32", min=2)
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Sequences per batch; may be repeated.", show_default="1, 4, 16, 64", min=1)
    ] = None,
    context: Annotated[int, typer.Option(help="Cached tokens per sequence.")] = 2048,
    miss_factor: Annotated[
        float,
        typer.Option(help="Factor on the acceptance probability in a block that did not predict the bonus token."),
    ] = 0.5,
    planner_tokens: Annotated[
        int,
        typer.Option(
            help="Also let the planner decode, with this many tokens per sequence, and print how far it stays behind"
            " the best fixed policy.",
            min=0,
        ),
    ] = 0,
    astray: Annotated[float | None, typer.Option(help="Old name of --miss-factor.", hidden=True)] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot speed relative to plain decoding into this PNG.")] = None,
) -> None:
    """Model, not measure, tokens per second on an H100-class GPU by acceptance, block size and batch."""
    from orthrus.bench import simulate as simulated

    check_plot(plot)
    device = simulated.Device()
    factor = miss_factor if astray is None else astray
    settings = acceptance or [6, 8, 10, 12], width or [8, 16, 32], batch or [1, 4, 16, 64]
    points = simulated.simulate(
        simulated.costs_of(shape, device), *settings, factor, context, planner_tokens=planner_tokens
    )
    title = f"{shape}, {device.name}, {context} tokens of context: tokens per second"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    ones, regret = [f"one pass, {n}" for n in points[0].one_pass], ["planner", "regret"] if planner_tokens else []
    for column in ("A", "K", "batch", "plain", "two pass", *ones, "planned", *regret):
        table.add_column(column, justify="right", overflow="fold")
    for p in points:
        ones = [f"{p.one_pass[n]:,.0f}" if n in p.one_pass else "-" for n in points[0].one_pass]
        own = [] if p.planner is None else [f"{p.planner:,.0f}", f"{p.regret:.1%}"]
        table.add_row(f"{p.acceptance:g}", str(p.width), str(p.batch), f"{p.plain:,.0f}", f"{p.two_pass:,.0f}", *ones,
                      f"{p.planned:,.0f}", *own)  # fmt: skip
    table_console().print(table)
    if plot is not None:
        simulated.plot(points, f"{shape}, {device.name}; best block size of each line", plot)
