"""`orthrus bench quality`: accuracy of the answers with and without drafts."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    load_model,
    progress,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Options


def command(
    task: Annotated[str, typer.Option(help="gsm8k (exact match), humaneval or mbpp (pass@1).")] = "gsm8k",
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int | None, typer.Option(help="Number of prompts.", show_default="all", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 256,
    cycle: Annotated[
        list[str] | None, typer.Option(help="Cycle to test; may be repeated.", show_default="ar, auto")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together in one batch.", min=1)] = 8,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run code that the model wrote; see the warning above.")
    ] = False,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Count the right answers of every cycle, greedy. Exit code 1 if the cycles do not generate the same tokens.

    HumanEval and MBPP run code that the model wrote, with limits on time, memory and file size, an empty environment
    and a temporary folder. That is NO sandbox: the code can read your files and reach the network.
    """
    from orthrus.bench import provenance, quality, tasks

    prompts = tasks.load(task, limit)
    quality.check(task, prompts, allow_code_execution=allow_code_execution)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache=cache)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0, "batch_size": batch_size}
    track = partial(progress, label=task, total=len(prompts))
    scores = quality.measure(loaded, prompts, options, cycle or ["ar", "auto"], track)
    if as_json:
        print(json.dumps({"scores": [asdict(s) for s in scores], "provenance": provenance.of_run(loaded)}, indent=2))
    else:
        table = Table(title=f"{task}, {len(prompts)} prompts, greedy")
        for column in ("cycle", "right", "same tokens"):
            table.add_column(column, justify="left" if column == "cycle" else "right")
        for score in scores:
            share = f"{score.right} ({score.right / score.prompts:.1%})"
            table.add_row(score.cycle, share, f"{score.identical} of {score.prompts}")
        table_console().print(table)
    if any(score.identical < score.prompts for score in scores):
        raise typer.Exit(1)
