"""`orthrus bench overlap`: which training records repeat a benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orthrus.cli._help import LOADING, OUTPUT
from orthrus.cli._shared import TASK, quiet, table_console

SHOWN = 3
"""Ids of records that are named per task."""


def command(
    data: Annotated[
        list[Path],
        typer.Option(
            help="JSONL file (or .jsonl.xz), directory that `orthrus distill` wrote, or packed file; may be repeated."
        ),
    ],
    task: Annotated[list[str] | None, typer.Option(help=TASK, show_default="all tasks")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model whose tokens packed files hold.",
            show_default="the one that they name",
            rich_help_panel=LOADING,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and all ids as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Compare training prompts with benchmarks: 13 words in a row, or a whole prompt that has fewer words and equals
    one of the benchmark, or how one begins.

    Case and punctuation do not count. `orthrus distill --exclude TASK` drops such prompts. Exit code 1 if there are
    any.
    """
    from orthrus.bench import overlap, tasks

    quiet()
    records = [record for path in data for record in overlap.records_in(path, model)]
    results = list(overlap.overlaps(records, task or tasks.names()))
    if as_json:
        print(json.dumps({"overlap": [asdict(result) for result in results], "records": len(records)}, indent=2))
    else:
        table = Table(title=f"{len(records):,} training records")
        for column in ("task", "prompts", "repeated by the data", "records that repeat one"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for result in results:
            named = f": {', '.join(result.records[:SHOWN])}" + (", ..." if len(result.records) > SHOWN else "")
            count = f"{len(result.records)}{named if result.records else ''}"
            table.add_row(result.task, str(result.prompts), str(result.repeated), count)
        table_console().print(table)
    if any(result.records for result in results):
        raise typer.Exit(1)
