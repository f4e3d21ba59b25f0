"""What `orthrus train` prints: the progress of a run, validations, estimates, and packed texts."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from orthrus.cli._shared import LINE_SECONDS, ProgressLines, status, stderr, table_console

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.model.decoder import Decoder
    from orthrus.training.config import TrainConfig
    from orthrus.training.data import Corpus
    from orthrus.training.tasks import Validation
    from orthrus.training.trainer import Progress as Step
    from orthrus.training.trainer import Trainer

STYLES = {"other": "dim", "target": "green", "root": "bold cyan", "root and target": "bold cyan underline"}


def follow(trainer: Trainer, config: TrainConfig, *, show: bool) -> None:
    """Run a trainer to its end, and show its progress."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True, disable=not show, speed_estimate_period=600) as bar:
        if trainer.rows_on_disk and show:
            bar.console.print(
                f"the rows of all blocks are computed once; they take {trainer.rows_on_disk / 1e9:.2f} GB"
            )
        if trainer.frozen_states_on_disk and show:
            size = trainer.frozen_states_on_disk / 1e9
            bar.console.print(f"what the AR view computes for each text is kept; it takes {size:.2f} GB")
        lines = ProgressLines(shown=show and not stderr.is_terminal)
        task = bar.add_task("rows of texts", total=None)
        for done, total in trainer.prepare():
            bar.update(task, completed=done, total=total)
            lines.tell(done, total, "rows of {} of {} texts are computed")
        bar.remove_task(task)
        task = bar.add_task("", total=config.total_steps, completed=trainer.done)
        lines = ProgressLines(shown=lines.shown, begun=trainer.done, at_once=True)
        if lines.shown:
            stderr.print(f"training: {config.total_steps - trainer.done} steps")
        for step in trainer.run():
            shares = " ".join(f"{share:.2f}" for share in step.agreement[:8])
            speed = step.rows / step.seconds
            bar.update(
                task, completed=step.step, description=f"loss {step.loss:.3f}  agreement {shares}  {speed:.0f} rows/s"
            )
            told = f"loss {step.loss:.3f}, agreement {shares}, {speed:.0f} rows/s"
            lines.tell(step.step, config.total_steps, f"step {{}} of {{}}: {told}")
            if step.validation is not None and show:
                _print_validation(bar.console, step, config)


def _print_validation(console: Console, step: Step, config: TrainConfig) -> None:
    assert step.validation is not None
    drafts = f"trees of {config.validation_nodes}" if config.validation_nodes else "chains"
    how = f"replay {drafts} with" if config.head_only else f"decode by {drafts} with"
    offsets = " ".join(f"{share:.2f}" for share in step.validation.by_offset)
    console.print(
        f"step {step.step}, {step.rows_total / 1e3:.0f}k rows: loss {step.loss:.3f}, held-out records {how}"
        f" A {step.validation.acceptance_length:.3f}, TPF {step.validation.tpf:.3f}, accepted by offset {offsets}",
        soft_wrap=True,
    )


def validate(checkpoint: Checkpoint, corpus: Corpus, nodes: int) -> Validation:
    """Decode the held-out prompts by two-pass cycles with a copy of the model that is prepared for inference."""
    from orthrus.bench import measure
    from orthrus.training.tasks import Validation

    prompts = [document.prompt for document in corpus.held_out]
    silent = nullcontext() if stderr.is_terminal else status(f"decoding {len(prompts)} held-out records", LINE_SECONDS)
    with silent:  # a terminal has the bar of the steps
        acceptance = measure.held_out_acceptance(checkpoint, prompts, nodes)
    return Validation(acceptance.acceptance_length, acceptance.tpf, acceptance.by_offset)


def bfloat16_slowdown() -> float:
    """How many times as long this CPU takes to multiply bfloat16 as float32. Without instructions for it torch emulates
    every product."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        x, w = (torch.ones(size, 512, dtype=dtype) for size in (64, 1024))
        times = []
        for _ in range(4):
            start = perf_counter()
            x @ w.T
            times.append(perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def print_estimate(decoder: Decoder, config: TrainConfig) -> None:
    """Print what a step needs."""
    from orthrus.training.estimate import estimate

    e = estimate(decoder, config)
    console, gigabyte = table_console(), 2**30
    total = e.weight_bytes + e.optimiser_bytes + e.activation_bytes
    console.print(f"parameters: {e.trained / 1e6:.1f} M trained, {e.frozen / 1e6:.1f} M frozen")
    console.print(
        f"memory: {total / gigabyte:.2f} GiB (weights {e.weight_bytes / gigabyte:.2f}, gradients and moments"
        f" {e.optimiser_bytes / gigabyte:.2f}, activations of a packed text up to {e.activation_bytes / gigabyte:.2f})"
    )
    console.print(f"a step: {e.flops / 1e12:.2f} TFLOP for {e.rows} supervised rows at most")


def print_text(corpus: Corpus, config: TrainConfig, decode: Any) -> None:
    """Print the first packed text with its roots and targets."""
    from orthrus.training.inspect import block_rows, words
    from orthrus.training.packing import Packing

    blocks, console = Packing(corpus.documents, config).blocks(0), table_console()
    text = Text()
    for word in words(blocks, decode):
        if word.begins:
            text.append("\n--- document ---\n", style="magenta")
        shown = f"[{word.text}]" if "root" in word.role and console.color_system is None else word.text
        text.append(shown, style=STYLES[word.role])
    console.print(text)
    console.print(
        f"\n{len(blocks.tokens_T)} tokens, {len(blocks.starts)} documents, {len(blocks.roots_S)} blocks of"
        f" {blocks.block_size} rows; [bold cyan]roots[/]{' in brackets' if console.color_system is None else ''},"
        f" [green]targets[/], [dim]other tokens[/]. The first block, row by row (input -> target):"
    )
    for row, (held, target) in enumerate(block_rows(blocks, 0, decode)):
        console.print(f"  {row}: {held!r} -> {target!r}", markup=False)
