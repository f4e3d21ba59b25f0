"""`orthrus bench constraints`: answers to JSON schemas, checked, with the drafts accepted beside those without."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    CycleOption,
    Dtype,
    DtypeOption,
    ModelOption,
    load_model,
    progress,
    table_console,
    without_none,
)

if TYPE_CHECKING:
    from orthrus.api import Options


def command(
    model: ModelOption = "smollm2-demo",
    count: Annotated[int, typer.Option(help="Schemas.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first schema; the others count up.", min=0)] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 300,
    batch_size: Annotated[int, typer.Option(help="Answers decoded together.", min=1)] = 8,
    cycle: CycleOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every answer and the figures as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Answer generated JSON schemas: how many answers match, and what the constraint does to drafting."""
    from orthrus.bench import constraints, provenance, schemas

    loaded = load_model(model, None, dtype, "cpu")
    options: Options = without_none(  # type: ignore[assignment]
        cycle=cycle, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    seeds = range(seed, seed + count)
    pairs = list(progress(constraints.answers(loaded, seeds, options), "constrained", count))
    answers, constrained = [answer for answer, _ in pairs], [result for _, result in pairs]
    prompts = [constraints.prompt_of(schemas.generate(one)) for one in seeds]
    lengths = sorted(answer.tokens for answer in answers)
    options["max_new_tokens"] = lengths[len(lengths) // 2]
    free = [result for _, result in progress(loaded.results(prompts, **options), "unconstrained", count)]
    complete = [answer for answer in answers if answer.finish_reason == "stop"]
    report: dict[str, Any] = {
        "schemas": count,
        "complete": len(complete),
        "matching": sum(not answer.problems for answer in complete),
        "cut at the maximum length": count - len(complete),
        "constrained": asdict(constraints.drafting(constrained)),
        "unconstrained": asdict(constraints.drafting(free)),
    }
    if as_json:
        made = [asdict(answer) for answer in answers]
        print(json.dumps({**report, "answers": made, "provenance": provenance.of_run(loaded)}, indent=2))
        return
    table = Table(title=f"{model}, {dtype.value}, {count} schemas")
    table.add_column("figure")
    table.add_column("value")
    for name, value in report.items():
        shown = (
            ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        table.add_row(name, str(shown))
    table_console().print(table)
