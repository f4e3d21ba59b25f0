"""`orthrus bench replay`: cycles and tokens per pass, computed from known answers."""

from __future__ import annotations

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
    pass


def command(
    task: Annotated[str, typer.Option(help="Task name or JSONL file.")],
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
    """Compute tokens per pass of two-pass cycles, by size of tree, and of one-pass cycles, by candidates, on known
    answers."""
    from orthrus.bench import replay as replays
    from orthrus.bench import tasks

    prompts = tasks.load(task, limit)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache=cache)
    if loaded.decoder.diffusion is None:
        raise ValueError("a replay needs a diffusion view; this checkpoint has none (--adapter gives it one)")
    texts = [replays.texts(loaded, prompt, max_new_tokens) for prompt in progress(prompts, task, len(prompts))]
    replayed = [("two-pass", [text.two_pass() for text in texts], 2)]
    replayed += [(f"two-pass, trees of {n}", [t.two_pass(n) for t in texts], 2) for n in replays.TREES]
    replayed += [(f"one-pass, {n} candidates", [t.one_pass(n) for t in texts], 1) for n in replays.CANDIDATES]
    replayed.append(("one-pass, all candidates", [text.one_pass() for text in texts], 1))
    table = Table(title=f"{task}, {len(texts)} prompts, greedy, full width: replayed")
    for column in ("", "A", "TPF", "x two-pass"):
        table.add_column(column, justify="right" if column else "left")
    base = replays.tpf(texts, replayed[0][1], 2)
    for name, accepted, passes in replayed:
        cycles, reached = sum(map(len, accepted)), replays.tpf(texts, accepted, passes)
        mean = sum(map(sum, accepted)) / max(1, cycles)
        table.add_row(name, f"{mean:.2f}", f"{reached:.2f}", f"{reached / base:.2f}")
    Console(highlight=False).print(table)
