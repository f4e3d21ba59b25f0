"""`orthrus bench memory`: memory that drafting needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    Dtype,
    DtypeOption,
    ModelOption,
    load_model,
    quiet,
    stderr,
    table_console,
)


def command(
    context: Annotated[
        list[int] | None, typer.Option(help="Cached tokens; may be repeated.", show_default="1124, 7780", min=1)
    ] = None,
    model: ModelOption = "smollm2-demo",
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a real shape instead: qwen3-0.6b, -1.7b, -4b, -8b.")
    ] = None,
    width: Annotated[int, typer.Option(help="Rows per block, and rows verified per pass.", min=2)] = 8,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Measure the bytes that a cycle needs beyond plain decoding. Drafting has no KV cache of its own."""
    from orthrus.api import DTYPES
    from orthrus.bench import memory as bytes_of
    from orthrus.bench import provenance, shapes

    if shape is None:
        runner = load_model(model, None, dtype, "cpu", False).runner
    else:
        quiet()
        with stderr.status(f"random weights of the shape of {shape}"):
            runner = shapes.random_runner(shape, DTYPES[dtype.value], block_size=max(width, 2))
    measured = [bytes_of.extra_of(runner, tokens, width) for tokens in context or (1124, 7780)]
    if as_json:
        where = provenance.of_runner(runner, shape or model)
        print(json.dumps({"memory": [asdict(extra) for extra in measured], "provenance": where}, indent=2))
        return
    table = Table(
        title=f"{shape or model}, {dtype.value}, bytes for one sequence, blocks and verifications of {width} rows"
    )
    for column in ("context", "cache", "workspace of plain decoding", "extra, two-pass", "extra, one-pass"):
        table.add_column(column, justify="right")
    for extra in measured:
        table.add_row(*[f"{number:,}" for number in asdict(extra).values()])
    table_console().print(table)
