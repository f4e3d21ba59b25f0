"""`orthrus bench replay`: cycles and tokens per pass, computed from known answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._costs import measure_costs_for_benchmark
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
    from orthrus.decoding.statistics import Statistics


def command(
    task: Annotated[str, typer.Option(help="Task name, JSONL file, or directory or packed file of distilled records.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Number of prompts.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 128,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Compute tokens per pass on known answers: of two-pass cycles by size of tree, of one-pass cycles by most blocks
    per pass, with chains and with trees, and of `auto`. A model with a draft head is replayed without it too. The
    speed-up over plain decoding follows from the cost table of this machine, so other programs do not disturb it."""
    from orthrus.bench import replay as replays
    from orthrus.bench import tasks
    from orthrus.bench.measure import acceptance

    prompts = tasks.load(task, limit)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache=cache)
    if loaded.decoder.diffusion is None:
        raise ValueError("a replay needs a diffusion view; this checkpoint has none (--adapter gives it one)")
    texts = replays.decode(loaded, prompts, {"max_new_tokens": max_new_tokens, "seed": 0, "batch_size": 8})
    runs: dict[str, list[Statistics]] = {}
    measure_costs_for_benchmark(loaded)
    costs, lengths = loaded.costs(), []
    for _, text in progress(texts, task, len(prompts)):
        if len(text.tokens) < 2:
            continue  # the answer of the prefill alone
        lengths.append(len(text.request.prompt))
        for name, statistics in replays.every_setting(text, costs):
            runs.setdefault(name, []).append(statistics)
    if not runs:
        raise ValueError("no answer has a second token, so nothing is drafted: use other prompts or --max-new-tokens")
    table = Table(title=f"{task}, {len(prompts)} prompts, greedy: replayed")
    for column in ("", "A", "TPF", "x two-pass", "rows per pass", "speed-up"):
        table.add_column(column, justify="right" if column else "left")
    pooled = {name: acceptance(name, own) for name, own in runs.items()}
    base = next(iter(pooled.values())).tpf
    for name, row in pooled.items():
        table.add_row(
            name, f"{row.acceptance_length:.2f}", f"{row.tpf:.2f}", f"{row.tpf / base:.2f}", f"{row.rows_per_pass:.1f}",
            f"{replays.speed_up(costs, runs[name], lengths):.2f}",
        )  # fmt: skip
    table_console().print(table)
