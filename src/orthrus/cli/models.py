"""`orthrus models`: the models that have a name, and which of them are on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._info import listing
from orthrus.cli._shared import status, table_console


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object per model as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """List the models that have a name: size, licence, origin of the weights, whether a diffusion view is bundled, and
    where they are on this machine.

    A name is given wherever a model is (`orthrus generate --model NAME`). Its file is hashed before its first use, and
    here. Weights that are not on this machine are fetched on first use, where their origin is the hub.
    """
    from orthrus.checkpoint import known_models

    with status("hashing files that were not hashed before"):
        records = [listing(model) for model in known_models.KNOWN]
    if as_json:
        print(json.dumps({"models": records}, indent=2))
        return
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for record in records:
        table.add_row(record["name"], f"{record['description']}, {record['bytes'] / 1e6:.0f} MB, {record['licence']}")
        table.add_row("diffusion view", "bundled" if record["view_bundled"] else "none yet: plain decoding")
        table.add_row("weights", f"{record['origin']}\n{record['file']}\nsha256 {record['sha256']}")
        table.add_row("on this machine", record["path"] or f"no: {record['remedy']}", end_section=True)
    table_console().print(table)
