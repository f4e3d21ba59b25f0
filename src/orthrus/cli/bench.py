"""`orthrus bench`: measure, with provenance."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    load_model,
    progress,
    quiet,
    stderr,
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.measure import Acceptance
    from orthrus.bench.speed import Speed

app = typer.Typer(help="Measure, with provenance.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure, with provenance."""


@app.command()
def acceptance(
    task: Annotated[str, typer.Option(help="Task name (gsm8k, humaneval, math500, mbpp, spec_bench) or a JSONL file.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int | None, typer.Option(help="Prompts; all where absent.", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt, at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the next ones count up.")] = 0,
    width: Annotated[int | None, typer.Option(help="Rows of a diffusion block; the block size where absent.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded side by side; changes no figure here.", min=1)] = 8,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and provenance as JSON.")] = False,
) -> None:
    """Accepted drafts per cycle (A) and tokens per pass (TPF) of the two-pass cycle, with 95 % intervals."""
    from orthrus.bench import measure, provenance, tasks
    from orthrus.decoding.sequence import Statistics

    prompts = tasks.load(task, limit)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone)
    options: Options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "cycle": "two-pass", "width": width,
        "batch_size": batch_size,
    }  # fmt: skip
    parts: dict[str, list[Statistics]] = {}
    for prompt, statistics in progress(measure.decode(loaded, prompts, options), task, len(prompts)):
        parts.setdefault(prompt.part, []).append(statistics)
    rows = [measure.acceptance(part, found) for part, found in sorted(parts.items())]
    if len(rows) > 1:
        rows.append(measure.acceptance("all", [s for found in parts.values() for s in found]))
    if as_json:
        print(
            json.dumps({"acceptance": [asdict(row) for row in rows], "provenance": provenance.of_run(loaded)}, indent=2)
        )
    else:
        _print(task, rows, loaded.checkpoint.view)


@app.command()
def speed(
    task: Annotated[list[str], typer.Option(help="Task name or JSONL file; may be repeated.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts of every task.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt, at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="A cycle, with candidates and width where wanted: auto, two-pass/4, one-pass:2/6; may be repeated."
            " The first is what the others are compared with. [default: ar, two-pass, one-pass, auto]"
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="exact or rejection; see generate.")] = "exact",
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the next ones count up.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw expected and measured speed into this PNG.")] = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and provenance as JSON.")] = False,
) -> None:
    """Tokens a second of the cycles, batch 1, every prompt by every setting in turn, beside what they took."""
    from orthrus.bench import provenance, tasks
    from orthrus.bench import speed as speeds

    settings = setting or list(speeds.SETTINGS)
    for name in settings:
        speeds.options_of(name)
    prompts = {name: tasks.load(name, limit) for name in task}
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "rule": rule}
    found = []
    for name, asked in prompts.items():
        track = partial(progress, label=name)
        found += speeds.measure_settings(loaded, asked, options, settings, track)
    if plot is not None:
        speeds.plot(found, plot)
    if as_json:
        print(json.dumps({"speed": speeds.as_records(found), "provenance": provenance.of_run(loaded)}, indent=2))
        return
    _print_speed(found, loaded.checkpoint.view)


@app.command()
def replay(
    task: Annotated[str, typer.Option(help="Task name or JSONL file.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt, at most.", min=1)] = 128,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    allow_other_backbone: AllowOption = False,
) -> None:
    """The limit of one pass against two with the same weights: tokens per pass by candidates, on known answers."""
    from orthrus.bench import replay as replays
    from orthrus.bench import tasks

    prompts = tasks.load(task, limit)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone)
    if loaded.decoder.diffusion is None:
        raise ValueError("a replay needs a diffusion view; this checkpoint has none (--adapter gives it one)")
    found = [replays.texts(loaded, prompt, max_new_tokens) for prompt in progress(prompts, task, len(prompts))]
    walks = [("two-pass", [text.two_pass() for text in found], 2)]
    walks += [(f"one-pass, {n} candidates", [t.one_pass(n) for t in found], 1) for n in replays.CANDIDATES]
    walks.append(("one-pass, all candidates", [text.one_pass() for text in found], 1))
    table = Table(title=f"{task}, {len(found)} prompts, greedy, full width: replayed")
    for column in ("", "A of its cycles", "TPF", "over two-pass"):
        table.add_column(column, justify="right" if column else "left")
    base = replays.tpf(found, walks[0][1], 2)
    for name, accepted, passes in walks:
        cycles, reached = sum(map(len, accepted)), replays.tpf(found, accepted, passes)
        mean = sum(map(sum, accepted)) / max(1, cycles)
        table.add_row(name, f"{mean:.2f}", f"{reached:.2f}", f"{reached / base:.2f}")
    Console(highlight=False).print(table)


@app.command()
def memory(
    context: Annotated[list[int] | None, typer.Option(help="Cached tokens; may be repeated. [default: two]")] = None,
    model: ModelOption = "smollm2-demo",
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a real shape instead: qwen3-0.6b, -1.7b, -4b, -8b.")
    ] = None,
    width: Annotated[int, typer.Option(help="Rows of a block, and rows verified in a pass.", min=2)] = 8,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Bytes that a cycle needs beyond plain decoding, at several contexts: drafting has no cache of its own."""
    from orthrus.api import DTYPES
    from orthrus.bench import memory as bytes_of
    from orthrus.bench import shapes

    if shape is None:
        decoder = load_model(model, None, dtype, "cpu", False).decoder
    else:
        quiet()
        with stderr.status(f"random weights of the shape of {shape}"):
            decoder = shapes.random_decoder(shape, DTYPES[dtype.value], block_size=max(width, 2))
    found = [bytes_of.extra_of(decoder, tokens, width) for tokens in context or (1124, 7780)]
    if as_json:
        print(json.dumps([asdict(extra) for extra in found], indent=2))
        return
    table = Table(
        title=f"{shape or model}, {dtype.value}, one sequence, blocks and verifications of {width} rows; bytes"
    )
    for column in ("context", "cache", "workspace of plain decoding", "more, two-pass", "more, one-pass"):
        table.add_column(column, justify="right")
    for extra in found:
        table.add_row(*[f"{number:,}" for number in asdict(extra).values()])
    Console(highlight=False).print(table)


@app.command()
def simulate(
    shape: Annotated[str, typer.Option(help="qwen3-0.6b, -1.7b, -4b or -8b.")] = "qwen3-8b",
    acceptance: Annotated[
        list[float] | None, typer.Option(help="A of two-pass at a block of 32; may be repeated. [default: 6 to 12]")
    ] = None,
    width: Annotated[list[int] | None, typer.Option(help="Rows of a block. [default: 8, 16, 32]")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences. [default: 1, 4, 16, 64]")] = None,
    context: Annotated[int, typer.Option(help="Cached tokens of each.")] = 2048,
    astray: Annotated[
        float, typer.Option(help="What is left of a draft's chance in a block that did not foresee the bonus.")
    ] = 0.5,
    plot: Annotated[Path | None, typer.Option(help="Draw speed over plain decoding into this PNG.")] = None,
) -> None:
    """MODEL, do not measure: tokens a second on an H100-class GPU, by acceptance, block size, candidates and batch."""
    from orthrus.bench import simulate as simulated

    device = simulated.Device()
    points = simulated.simulate(
        shape, device, acceptance or [6, 8, 10, 12], width or [8, 16, 32], batch or [1, 4, 16, 64], astray, context
    )
    title = f"{shape}, {device.name}, {context} tokens of context: tokens a second"
    table = Table(title=title)
    for column in ("A", "K", "batch", "plain", "two-pass", *[f"one-pass, {n}" for n in points[0].one_pass], "planned"):
        table.add_column(column, justify="right")
    for p in points:
        ones = [f"{p.one_pass[n]:,.0f}" if n in p.one_pass else "-" for n in points[0].one_pass]
        table.add_row(f"{p.acceptance:g}", str(p.width), str(p.batch), f"{p.plain:,.0f}", f"{p.two_pass:,.0f}", *ones,
                      f"{p.planned:,.0f}")  # fmt: skip
    Console(highlight=False).print(table)
    if plot is not None:
        simulated.plot(points, f"{shape}, {device.name}; best block size of each line", plot)


@app.command("train-step")
def train_step(
    model: ModelOption = "smollm2-demo",
    block_size: Annotated[int, typer.Option(help="K, rows of a block; all are trained.", min=2)] = 8,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens of the packed text: four random documents.", min=64)
    ] = 1024,
    roots: Annotated[int, typer.Option(help="Blocks in it.", min=1)] = 192,
    n: Annotated[int, typer.Option("-n", help="Interleaved turns; two more warm up.", min=1)] = 7,
    dtype: DtypeOption = Dtype.bfloat16,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and provenance as JSON.")] = False,
) -> None:
    """Speed of a training step against its plain twin (autograd, dense masks) and its matrix products alone."""
    from orthrus.api import DTYPES
    from orthrus.bench import provenance, training
    from orthrus.checkpoint import hub
    from orthrus.config import TrainConfig

    quiet()
    with stderr.status("measuring"):
        checkpoint = hub.load(model, adapter=hub.NO_ADAPTER, dtype=DTYPES[dtype.value])
        mask = checkpoint.decoder.diffusion.mask_token_id if checkpoint.decoder.diffusion else 0
        hub.give_view(checkpoint, block_size, mask, last_row=True)
        config = TrainConfig(block_size, block_size, mask, sequence_length=sequence_length, roots=roots)
        found = training.measure(checkpoint.decoder, config, n)
    if as_json:
        print(json.dumps({**found, "provenance": provenance.machine(checkpoint.decoder.device)}, indent=2))
        return
    table = Table(title=f"a training step with {found['rows']} supervised rows; medians of n = {n}, in turn")
    for column in ("", "rows a second", "seconds", "time over the step's (quartiles)"):
        table.add_column(column, justify="right" if column else "left")
    for name, speed in found["rows_per_second"].items():
        middle, low, high = found["time_over_step"].get(name, (1.0, 1.0, 1.0))
        table.add_row(name, f"{speed:.0f}", f"{found['seconds'][name]:.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})")
    console = Console(highlight=False)
    console.print(table)
    console.print("where a step spends its time:")
    for name, share in found["profile"].items():
        console.print(f"  {share:6.1%}  {name}", markup=False)


def _print_speed(found: list[Speed], view: str) -> None:
    table = Table(title=f"batch 1, in turn; medians over prompts and (quartiles); diffusion view: {view}")
    for column in ("part", "setting", "A", "tokens a cycle", "passes", "TPF", "rows a pass", "tokens/s", "expected",
                   f"over {found[0].setting}", "same tokens"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("part", "setting") else "right")
    for row in found:
        table.add_row(
            row.part, row.setting, f"{row.acceptance_length:.2f}", f"{row.tokens_per_cycle:.2f}", str(row.passes),
            f"{row.tpf:.2f}", f"{row.rows_per_pass:.1f}",
            f"{row.speed:.1f} ({row.quartiles[0]:.0f}-{row.quartiles[1]:.0f})",
            f"{row.expected:.1f}",
            f"{row.over_plain:.2f} ({row.over_plain_quartiles[0]:.2f}-{row.over_plain_quartiles[1]:.2f})",
            f"{row.identical} of {row.prompts}", end_section=row.setting == found[-1].setting,
        )  # fmt: skip
    Console(highlight=False).print(table)


def _print(task: str, rows: list[Acceptance], view: str) -> None:
    table = Table(title=f"{task}, two-pass; diffusion view: {view}")
    for column in (
        "part",
        "prompts",
        "tokens",
        "A (95 %)",
        "TPF (95 %)",
        "rows a pass",
        "accepted at offset 1, 2, ...",
    ):
        table.add_column(column, justify="left" if column in ("part", "accepted at offset 1, 2, ...") else "right")
    for row in rows:
        table.add_row(
            row.part, str(row.prompts), str(row.generated),
            f"{row.acceptance_length:.2f} ({row.interval[0]:.2f}-{row.interval[1]:.2f})",
            f"{row.tpf:.2f} ({row.tpf_interval[0]:.2f}-{row.tpf_interval[1]:.2f})",
            f"{row.rows_per_pass:.1f}", " ".join(f"{share:.2f}" for share in row.by_offset),
        )  # fmt: skip
    Console(highlight=False).print(table)
