"""`orthrus bench perplexity`: what bfloat16 and int8 cost in quality."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._sampling import StopOption
from orthrus.cli._shared import (
    CacheOption,
    DeviceOption,
    Dtype,
    ModelOption,
    Quantize,
    load_model,
    progress,
    stderr,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Options
    from orthrus.bench.perplexity import Fidelity


def command(
    text: Annotated[Path, typer.Option(help="Held-out text, in UTF-8.", exists=True, dir_okay=False)],
    model: ModelOption = "smollm2-demo",
    tokens: Annotated[int, typer.Option(help="Tokens of the text to score.", min=2)] = 50_000,
    window: Annotated[int, typer.Option(help="Tokens scored together, from an empty cache.", min=2)] = 512,
    task: Annotated[str | None, typer.Option(help="Task whose greedy answers are compared too.")] = None,
    limit: Annotated[int, typer.Option(help="Number of its prompts.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 128,
    stop: StopOption = None,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together in one batch.", min=1)] = 8,
    score: Annotated[bool, typer.Option("--score", help="Count the right answers of the task too.")] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run code that the model wrote; see the warning above.")
    ] = False,
    arithmetic: Annotated[
        list[str] | None, typer.Option(help="bfloat16 or int8; may be repeated.", show_default="both")
    ] = None,
    device: DeviceOption = "cpu",
    cache: CacheOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Compare bfloat16 and int8 with float32: perplexity of a text, and greedy answers, token by token.

    With --score, the right answers are counted, as `orthrus bench quality` does. HumanEval and MBPP run code that the
    model wrote, with limits on time, memory and file size, an empty environment and a temporary folder. That is NO
    sandbox: the code can read your files and reach the network.
    """
    from orthrus.bench import perplexity, provenance, quality, tasks

    names = [perplexity.REFERENCE, *(arithmetic or [n for n in perplexity.ARITHMETICS if n != perplexity.REFERENCE])]
    unknown = [name for name in names if name not in perplexity.ARITHMETICS]
    if unknown:
        raise ValueError(f"--arithmetic {unknown[0]}: use {', '.join(perplexity.ARITHMETICS)}")
    prompts = tasks.load(task, limit) if task else []
    if score:
        quality.check(task, prompts, allow_code_execution=allow_code_execution)
    options: Options = {"max_new_tokens": max_new_tokens, "seed": 0, "batch_size": batch_size}
    if stop is not None:
        options["stop"] = stop
    found, scores, provenances = {}, [], {}
    for name in names:
        dtype, kind = perplexity.ARITHMETICS[name]
        loaded = load_model(model, "none", Dtype(dtype), device, quantize=Quantize(kind), cache=cache)
        windows = perplexity.windows_of(
            loaded.encode(text.read_text(encoding="utf-8"), special_tokens=False), window, tokens
        )
        track = partial(progress, label=name, total=len(windows))
        found[name] = perplexity.measure(loaded, windows, prompts, options, track, check=score)
        provenances[name] = provenance.of_run(loaded)
        scores.append(perplexity.compare(name, found[name], found[perplexity.REFERENCE]))
        loaded.close()
    if as_json:
        print(json.dumps({"fidelity": [asdict(score) for score in scores], "provenance": provenances}, indent=2))
        return
    _print(scores, f"{text.name}, {len(windows)} windows of {window} tokens" + (f"; {task}" if task else ""))


def _print(scores: list[Fidelity], title: str) -> None:
    table = Table(title=title)
    scored = any(score.verdicts for score in scores)
    columns = ["arithmetic", "perplexity", "loss - float32 (95 %)", "same answers", "tokens before the first other"]
    for column in [*columns, *(["right", "lost, gained (p)", "right - float32 (95 %)"] if scored else [])]:
        table.add_column(column, justify="left" if column == "arithmetic" else "right")
    for score in scores:
        answers = (f"{score.identical} of {score.answers}", f"{score.agreeing:.1%}") if score.answers else ("", "")
        low, high = score.interval
        gap = f"{score.difference:+.5f} ({low:+.5f} to {high:+.5f})"
        table.add_row(score.arithmetic, f"{score.perplexity:.4f}", gap, *answers, *_verdict_cells(score))
    table_console().print(table)
    stderr.print("loss: mean negative log likelihood of a token, in nats; its interval is over windows")
    if scored:
        stderr.print("lost, gained: right in float32 alone, and in this arithmetic alone; p: exact McNemar test")


def _verdict_cells(score: Fidelity) -> tuple[str, ...]:
    """The cells of a row about right answers: none where they were not counted."""
    if (verdicts := score.verdicts) is None:
        return ()
    low, high = verdicts.interval
    share = f"{verdicts.right} ({verdicts.right / score.answers:.1%})"
    changed = f"{verdicts.lost}, {verdicts.gained} ({verdicts.p:.2f})"
    difference = (verdicts.gained - verdicts.lost) / score.answers
    return share, changed, f"{difference:+.1%} ({low:+.1%} to {high:+.1%})"
