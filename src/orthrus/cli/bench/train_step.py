"""`orthrus bench train-step`: speed of a training step."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from orthrus.cli._costs import timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import Dtype, DtypeOption, ModelOption, quiet, stderr, table_console

LABELS = {"step": "step", "plain twin": "reference step", "products alone": "matrix products alone"}
"""The printed name of each key of the JSON, whose keys keep the names of earlier results."""


def command(
    model: ModelOption = "smollm2-demo",
    block_size: Annotated[int, typer.Option(help="K, rows per block; all rows are trained.", min=2)] = 8,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens of the packed text of four random documents.", min=64)
    ] = 1024,
    roots: Annotated[int, typer.Option(help="Blocks in the packed text.", min=1)] = 192,
    n: Annotated[int, typer.Option("-n", help="Interleaved repetitions, after two for warm-up.", min=1)] = 7,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure a training step against its reference (autograd, dense masks) and against its matrix products alone."""
    from orthrus.api import DTYPES
    from orthrus.bench import provenance, training
    from orthrus.checkpoint import hub, initial_view
    from orthrus.training.config import TrainConfig

    quiet()
    with stderr.status("measuring"):
        checkpoint = hub.load(model, adapter=hub.NO_ADAPTER, dtype=DTYPES[dtype.value])
        mask = checkpoint.decoder.diffusion.mask_token_id if checkpoint.decoder.diffusion else 0
        initial_view.give_view(checkpoint, block_size, mask, last_row=True)
        config = TrainConfig(block_size, block_size, mask, sequence_length=sequence_length, roots=roots)
        with timed() as load:
            measured = training.measure(checkpoint.decoder, config, n)
    if as_json:
        machine = provenance.machine(checkpoint.decoder.device) | load.as_dict()
        print(json.dumps({**measured, "provenance": machine}, indent=2))
        return
    table = Table(title=f"a training step with {measured['rows']} supervised rows; medians of n = {n}, interleaved")
    for column in ("", "rows/s", "seconds", "time relative to the step (quartiles)"):
        table.add_column(column, justify="right" if column else "left")
    for name, speed in measured["rows_per_second"].items():
        middle, low, high = measured["time_over_step"].get(name, (1.0, 1.0, 1.0))
        table.add_row(
            LABELS[name], f"{speed:.0f}", f"{measured['seconds'][name]:.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"
        )
    console = table_console()
    console.print(table)
    console.print("share of the step's time by operation:")
    for name, share in measured["profile"].items():
        console.print(f"  {share:6.1%}  {name}", markup=False)
