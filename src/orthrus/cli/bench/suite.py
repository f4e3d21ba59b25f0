"""`orthrus bench suite`: everything, into one directory and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orthrus.cli._shared import AdapterOption, DeviceOption, Dtype, DtypeOption, ModelOption, QuantizeOption, stderr


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the results.")] = Path("measured"),
    quick: Annotated[bool, typer.Option("--quick", help="A few prompts of each: minutes instead of an hour.")] = False,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
) -> None:
    """Passes, memory, speed, peers, acceptance, quality: each into a JSON file, and all on one page with pictures.

    Stopped or failed, the same command goes on with what is missing. Keep the machine idle meanwhile.
    """
    from orthrus.bench import suite

    options = ["--model", model, "--dtype", dtype.value]
    for name, value in (("--adapter", adapter), ("--device", device), ("--quantize", quantize and quantize.value)):
        if value not in (None, "cpu"):
            options += [name, str(value)]
    page = suite.run(output, options, quick=quick, tell=stderr.print)
    print(f"{page}: all of it")
