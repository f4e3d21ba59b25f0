"""`orthrus bench acceptance`: accepted drafts per cycle."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
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
    from orthrus.api import Model, Options
    from orthrus.bench.acceptance import PairedAcceptance, Setting
    from orthrus.bench.measure import Acceptance
    from orthrus.bench.tasks import TaskPrompt


SIZES = (0, 8, 16)
"""The sizes of trees that are measured, in nodes; 0 is a chain."""


TaskOption = Annotated[
    list[str],
    typer.Option(help="Task name, JSONL file of prompts, or directory of distilled records; may be repeated."),
]
PairedOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="FIRST SECOND",
        help="Two adapters to compare on the same answers, in place of --adapter: prints by how much A of"
        " the second exceeds that of the first.",
    ),
]


def command(
    task: TaskOption,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    paired: PairedOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts per task.", show_default="all", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; each further prompt adds 1.")] = 0,
    width: Annotated[int | None, typer.Option(help="Rows per diffusion block.", show_default="the block size")] = None,
    tree_nodes: Annotated[
        list[int] | None,
        typer.Option(
            help="Drafts verified per cycle, as a tree; 0 for a chain; may be repeated.", show_default="0, 8, 16"
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="exact or rejection; see generate.")] = "exact",
    batch_size: Annotated[
        int, typer.Option(help="Prompts decoded together in one batch; does not change the figures.", min=1)
    ] = 8,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure accepted drafts per cycle (A) and tokens per pass (TPF) of the two-pass cycle, with 95 % intervals.

    Under the rule `exact`, every text is decoded once and replayed with every setting: also with drafts that are not
    looked up in the text and, for a model with a draft head, with independent rows alone. Answers that loop (of whose
    4-grams of tokens less than 0.7 are distinct) are counted, and A is also given without them.
    """
    from orthrus.bench import acceptance, tasks

    if paired and (adapter is not None or rule != "exact"):
        raise ValueError("--paired names both adapters and replays them under the rule exact: leave --adapter and"
                         " --rule out")  # fmt: skip
    prompts = {name: tasks.load(name, limit) for name in task}
    first, *others = [
        load_model(model, name, dtype, device, allow_other_backbone, quantize, cache=cache)
        for name in paired or (adapter,)
    ]
    options: Options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "cycle": "two-pass", "width": width,
        "batch_size": batch_size, "rule": rule,
    }  # fmt: skip
    with_most = max((first, *others), key=lambda loaded: loaded.decoder.draft_head is not None)
    settings = acceptance.settings(with_most, dict.fromkeys(tree_nodes or SIZES), options, replays=rule == "exact")
    _report(_measure([first, *others], prompts, options, settings), first, as_json)


def _measure(
    models: list[Model], prompts: dict[str, list[TaskPrompt]], options: Options, settings: list[Setting]
) -> dict[str, Any]:
    """The acceptance of one model, or the differences between two."""
    from orthrus.bench import acceptance

    if len(models) == 2:
        differences: list[PairedAcceptance] = []
        for name, asked in prompts.items():
            pairs = acceptance.replayed_by_both(models, asked, options, settings)
            differences += acceptance.paired_by_part(name, progress(pairs, name, len(asked) * len(settings)), settings)
        return {"paired": differences}
    measured = acceptance.replayed if options["rule"] == "exact" else acceptance.decoded
    rows: list[Acceptance] = []
    for name, asked in prompts.items():
        runs = measured(models[0], asked, options, settings)
        rows += acceptance.by_part(name, progress(runs, name, len(asked) * len(settings)), settings)
    return {"acceptance": rows}


def _report(figures: dict[str, Any], model: Model, as_json: bool) -> None:
    from orthrus.bench import provenance

    if as_json:
        content = {name: [asdict(row) for row in rows] for name, rows in figures.items()}
        print(json.dumps({**content, "provenance": provenance.of_run(model)}, indent=2))
    elif "paired" in figures:
        _print_paired(figures["paired"])
    else:
        _print(figures["acceptance"], model.checkpoint.view)


def _print(rows: list[Acceptance], view: str) -> None:
    """Print one table per part of A and TPF, and one of what was accepted by offset: each fits into 80 columns."""
    console = table_console()
    console.print(f"two-pass; diffusion view: {view}", markup=False)
    for part in dict.fromkeys(row.part for row in rows):
        of_part = [row for row in rows if row.part == part]
        loops = any(row.loops for row in of_part)
        table = _table(f"{part}: {of_part[0].prompts} prompts", "A (95 %)", "TPF (95 %)", "rows per pass")
        for row in of_part:
            spreads = _spread(row.acceptance_length, row.interval), _spread(row.tpf, row.tpf_interval)
            table.add_row(row.drafts, *spreads, f"{row.rows_per_pass:.1f}")
        console.print(table)
        offsets = _table("", "accepted at offset 1, 2, ...", justify="left")
        for row in of_part:
            offsets.add_row(row.drafts, " ".join(f"{share:.2f}" for share in row.by_offset))
        console.print(offsets)
        if loops:
            without = _table("", "answers that loop", "A without them (95 %)")
            for row in of_part:
                spread = _spread(*row.without_loops) if row.without_loops else "-"
                without.add_row(row.drafts, f"{row.loops} of {row.prompts}", spread)
            console.print(without)


def _table(title: str, *columns: str, justify: Literal["left", "right"] = "right") -> Table:
    """A table whose first column is what drafts are verified."""
    table = Table(title=title or None, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("drafts", no_wrap=True)
    for column in columns:
        table.add_column(column, justify=justify, no_wrap=column.endswith("(95 %)"))
    return table


def _print_paired(rows: list[PairedAcceptance]) -> None:
    table = Table(title="A of two-pass cycles, the same answers by two diffusion views")
    for column in ("part", "drafts", "prompts", "first", "second", "second - first (95 %)", "better"):
        table.add_column(column, justify="left" if column in ("part", "drafts", "better") else "right")
    for row in rows:
        low, high = row.interval
        table.add_row(
            row.part, row.drafts, str(row.prompts), f"{row.first:.2f}", f"{row.second:.2f}",
            f"{row.difference:+.2f} ({low:+.2f} to {high:+.2f})", row.conclusion,
        )  # fmt: skip
    table_console().print(table)


def _spread(middle: float, ends: tuple[float, float]) -> str:
    return f"{middle:.2f} ({ends[0]:.2f}-{ends[1]:.2f})"
