"""`orthrus bench suite`: all benchmarks, in one directory and on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orthrus.cli._shared import (
    AdapterOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    ended_by_sigterm,
    stderr,
)


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")] = Path("measured"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few prompts per benchmark: minutes instead of an hour.")
    ] = False,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
) -> None:
    """Run all benchmarks (passes, memory, speed, peers, acceptance, quality): a JSON file each, and one HTML page.

    After an interruption or a failure, run the same command to measure what is missing. Keep the machine idle while it
    runs.
    """
    from orthrus.bench import suite

    options = ["--model", model, "--dtype", dtype.value]
    for name, value in (("--adapter", adapter), ("--device", device), ("--quantize", quantize and quantize.value)):
        if value not in (None, "cpu"):
            options += [name, str(value)]
    with ended_by_sigterm():
        page = suite.run(output, options, quick=quick, tell=stderr.print)
    print(f"{page}: all results")
