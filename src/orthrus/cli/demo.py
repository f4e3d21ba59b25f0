"""`orthrus demo`: accepted drafts highlighted, then the same text by plain decoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli._chat.wrapping import Styled, lines_for
from orthrus.cli._costs import measure_costs, timed
from orthrus.cli._plan import mostly_plain
from orthrus.cli._shared import (
    AdapterOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    load_model,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Model, Result

PROMPT = "Write a Python function that reverses a string."
"""The demo model answers it rightly, and accepts as many drafts as on average over HumanEval and GSM8K."""
TYPICAL = """\
This prompt is typical of code and arithmetic: with trees of eight drafts, the bundled view has 3.6 accepted drafts per
cycle on HumanEval, 3.7 on GSM8K and 3.6 here. Free prose gains less: 2.9 on Spec-Bench.
"""
PLAIN = """\
note: {plain} of {cycles} cycles did not draft: by the cost table of this machine a cycle with {nodes} drafts takes as
long as {ratio:.1f} plain passes, and was not expected to give so many tokens; the figures above are therefore mostly
those of plain decoding, not of the diffusion view. `orthrus doctor --calibrate` times the passes again.
"""
NODES = 8
"""The drafts of the trees that these sentences speak of."""

INTRODUCTION = """\
A language model normally writes one token (a piece of a word) per pass through its layers. Orthrus gives the same,
unchanged model a second view that [bold]drafts[/bold] several tokens at once; the model then checks all of them in a
single pass and keeps the ones it would have written itself. The text is the same; only the number of passes changes.
"""


def command(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of the answer.", min=1)] = 160,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
) -> None:
    """Stream one answer with accepted drafts highlighted, then answer the same prompt by plain decoding."""
    loaded = load_model(model, adapter, dtype, device, quantize=quantize, cache=cache)
    console = table_console()
    if loaded.decoder.diffusion is None:
        raise ValueError("the demo needs a diffusion view; this checkpoint has none (--adapter gives it one)")
    measure_costs(loaded)
    _introduce(console, loaded, prompt)
    with timed():
        fast = _stream(console, loaded, prompt, "auto", max_new_tokens)
        console.rule("the same prompt by plain decoding: one token per pass")
        plain = _stream(console, loaded, prompt, "ar", max_new_tokens)
    _compare(console, loaded, fast, plain)
    _conclude(console, loaded, fast, prompt)


def _introduce(console: Console, model: Model, prompt: str) -> None:
    config = model.decoder.diffusion
    assert config is not None
    console.print(INTRODUCTION.replace("\n", " "), "\n")
    console.print(
        f"model: {model.checkpoint.backbone.id}, diffusion view: {model.checkpoint.view}, block of {config.block_size}"
    )
    if "untrained" in model.checkpoint.view:
        console.print(
            "This diffusion view is not trained yet: it can draft about one token per cycle, so expect correct text and"
            " no speed-up.",
            style="yellow",
        )
    console.print(f"\n[bold]prompt:[/bold] {prompt}\n")
    drafts = r"accepted drafts, in \[brackets]" if console.color_system is None else "accepted drafts"
    console.rule(f"[bold green underline]{drafts}[/] and [cyan]tokens the model added itself[/]")


def _stream(console: Console, model: Model, prompt: str, cycle: str, max_new_tokens: int) -> Result:
    lines = lines_for(console)

    def show(shown: Iterable[Styled]) -> None:
        for text, style in shown:
            console.print(text, style=style, end="", markup=False, soft_wrap=True)

    for chunk in model.stream(prompt, cycle=cycle, max_new_tokens=max_new_tokens):
        for piece in chunk.pieces:
            style = "bold green underline" if piece.drafted else ("cyan" if cycle != "ar" else "")
            text = f"[{piece.text}]" if piece.drafted and console.color_system is None else piece.text
            show(lines.take(text, style))
    show(lines.finish())
    console.print("\n")
    assert chunk.result is not None
    return chunk.result


def _compare(console: Console, model: Model, fast: Result, plain: Result) -> None:
    same = fast.tokens == plain.tokens
    table = Table(title="what it cost")
    for column in ("", "Orthrus", "plain decoding"):
        table.add_column(column, justify="left" if not column else "right")
    f, p = fast.statistics, plain.statistics
    table.add_row("tokens written", str(f.generated), str(p.generated))
    table.add_row("passes through the model", str(f.passes), str(p.passes))
    table.add_row("tokens per pass (TPF)", f"{f.tpf:.2f}", f"{p.tpf:.2f}")
    table.add_row("drafts accepted per cycle (A)", f"{f.acceptance_length:.2f}", "-")
    table.add_row("tokens per cycle", f"{f.acceptance_length + 1:.2f}", "1.00")
    table.add_row("tokens per second", f"{f.generated / f.seconds:.1f}", f"{p.generated / p.seconds:.1f}")
    table.add_row("extra memory: key/value cache", "0 MB (shared)", "-")
    table.add_row("extra memory: weights for drafting", f"{model.runner.draft_bytes / 1e6:.0f} MB", "-")
    console.print(table)
    compared = f"{len(fast.tokens)} of {len(plain.tokens)} tokens compared"
    verdict = f"identical: {compared}" if same else f"DIFFERENT, which is a defect: {compared}"
    console.print(verdict, style="bold green" if same else "bold red")
    if not same:
        raise typer.Exit(1)


def _conclude(console: Console, model: Model, fast: Result, prompt: str) -> None:
    """Say what the table means: why it shows little drafting, or else whether the prompt is typical."""
    if mostly_plain([fast.statistics]):
        console.print(_why_plain(model, fast).replace("\n", " "), style="yellow", highlight=False)
    elif prompt == PROMPT and model.checkpoint.view.startswith("bundled"):
        console.print(TYPICAL.replace("\n", " "), style="dim")


def _why_plain(model: Model, fast: Result) -> str:
    config, costs, statistics = model.decoder.diffusion, model.costs(), fast.statistics
    assert config is not None
    context, width = fast.prompt_tokens + statistics.generated / 2, config.block_size
    drafting = min(
        costs.cycle(shape, context) for shape in (("two-pass", NODES, 0, width), ("one-pass", NODES, 1, width))
    )
    ratio = drafting / costs.ar(1, 1, context)
    plain, cycles = statistics.cycles["ar"], sum(statistics.cycles.values())
    return PLAIN.format(plain=plain, cycles=cycles, nodes=NODES, ratio=ratio)
