"""`orthrus bench acceptance`: accepted drafts per cycle."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

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
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.measure import Acceptance


SIZES = (0, 8, 16)
"""The sizes of trees that are measured, in nodes; 0 is a chain."""


def command(
    task: Annotated[list[str], typer.Option(help="Task name or JSONL file of prompts; may be repeated.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and provenance as JSON.")] = False,
) -> None:
    """Measure accepted drafts per cycle (A) and tokens per pass (TPF) of the two-pass cycle, with 95 % intervals.

    Under the rule `exact`, every text is decoded once and replayed with every setting: also with drafts that are not
    looked up in the text and, for a model with a draft head, with independent rows alone.
    """
    from orthrus.bench import acceptance, provenance, tasks

    prompts = {name: tasks.load(name, limit) for name in task}
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache=cache)
    options: Options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "cycle": "two-pass", "width": width,
        "batch_size": batch_size, "rule": rule,
    }  # fmt: skip
    replays = rule == "exact"
    settings = acceptance.settings(loaded, dict.fromkeys(tree_nodes or SIZES), options, replays=replays)
    measured = acceptance.replayed if replays else acceptance.decoded
    rows = []
    for name, asked in prompts.items():
        runs = progress(measured(loaded, asked, options, settings), name, len(asked) * len(settings))
        rows += acceptance.by_part(name, runs, settings)
    if as_json:
        print(
            json.dumps({"acceptance": [asdict(row) for row in rows], "provenance": provenance.of_run(loaded)}, indent=2)
        )
    else:
        _print(rows, loaded.checkpoint.view)


def _print(rows: list[Acceptance], view: str) -> None:
    table = Table(title=f"two-pass; diffusion view: {view}")
    for column in (
        "part",
        "drafts",
        "prompts",
        "tokens",
        "A (95 %)",
        "TPF (95 %)",
        "rows per pass",
        "accepted at offset 1, 2, ...",
    ):
        table.add_column(
            column, justify="left" if column in ("part", "drafts", "accepted at offset 1, 2, ...") else "right"
        )
    for row in rows:
        table.add_row(
            row.part, row.drafts, str(row.prompts), str(row.generated),
            f"{row.acceptance_length:.2f} ({row.interval[0]:.2f}-{row.interval[1]:.2f})",
            f"{row.tpf:.2f} ({row.tpf_interval[0]:.2f}-{row.tpf_interval[1]:.2f})",
            f"{row.rows_per_pass:.1f}", " ".join(f"{share:.2f}" for share in row.by_offset),
        )  # fmt: skip
    Console(highlight=False).print(table)
