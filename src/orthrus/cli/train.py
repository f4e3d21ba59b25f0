"""`orthrus train`: give a bare backbone a diffusion view."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from orthrus.cli._shared import AllowOption, DeviceOption, Dtype, DtypeOption, ModelOption, quiet, stderr

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.config import TrainConfig
    from orthrus.training.data import Corpus
    from orthrus.training.trainer import Progress as Step
    from orthrus.training.trainer import Trainer, Validation

STYLES = {"other": "dim", "target": "green", "root": "bold cyan", "root and target": "bold cyan underline"}


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the run. The same command resumes it.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Directory written by `orthrus distill`, or JSONL of conversations; may be repeated."),
    ],
    model: ModelOption = "smollm2-demo",
    warm_start: Annotated[
        str | None, typer.Option(help="Adapter to begin from, instead of the AR projections.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="K, rows of a block. [default: the view's own, else 32]")
    ] = None,
    train_last_row: Annotated[bool, typer.Option(help="Train the last row of a block too: one draft more.")] = True,
    mask_token: Annotated[
        str | None, typer.Option(help="Text or id of a token never seen in chat. [default: the view's own]")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="kl: forward KL from the AR view. cross-entropy: the text's tokens.")
    ] = "kl",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. [default: two epochs]", min=1)] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a packed text.")] = 2048,
    roots: Annotated[int, typer.Option(help="Blocks in each packed text.")] = 256,
    sequences: Annotated[int, typer.Option(help="Packed texts per step (accumulated, and shared by processes).")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 2e-4,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.05,
    final_rate: Annotated[float, typer.Option(help="What the cosine falls to, as a share of the peak.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order of the data and the choice of roots.")] = 0,
    held_out: Annotated[int, typer.Option(help="Records kept for validation by real decoding.")] = 32,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    save_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    estimate: Annotated[bool, typer.Option("--estimate", help="Print what a step costs, and stop.")] = False,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Print a packed text with roots and targets, and stop.")
    ] = False,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Train the diffusion view of a backbone, which itself stays frozen.

    Ctrl-C and SIGTERM finish the step, save, and end; the same command goes on from there, and ends with the same bits.
    `best/` in the output is the adapter with the highest acceptance length by real decoding of held-out prompts.
    """
    from orthrus.checkpoint import hub
    from orthrus.config import TrainConfig
    from orthrus.training import data as corpora
    from orthrus.training import objectives
    from orthrus.training.packing import Packing

    objectives.load(objective)
    quiet()
    with stderr.status(f"loading {model}"):
        loaded = hub.load(
            model, adapter=warm_start or hub.NO_ADAPTER, dtype=_torch_dtype(dtype), device=device,
            allow_other_backbone=allow_other_backbone,
        )  # fmt: skip
        checkpoint = hub.give_view(loaded, block_size, _token(mask_token), last_row=train_last_row)
    for warning in checkpoint.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    view = checkpoint.decoder.diffusion
    assert view is not None

    def config_of(number: int) -> TrainConfig:
        return TrainConfig(
            view.block_size, view.trained_rows, view.mask_token_id, objective, sequence_length, roots, sequences,
            number, learning_rate, warmup, final_rate, (0.9, 0.95), weight_decay, clip, seed, held_out,
            validate_every, save_every,
        )  # fmt: skip

    config = config_of(steps or 1)
    if estimate:
        _print_estimate(checkpoint, config)
        return
    with stderr.status("reading data"):
        corpus = corpora.load(data, checkpoint.tokenizer, checkpoint.end_token_ids, config)
    for notice in corpus.notices:
        stderr.print(f"note: {notice}", style="yellow", markup=False)
    if inspect:
        _print_text(checkpoint, Packing(corpus.documents, config), checkpoint.tokenizer.decode)
        return
    if steps is None:
        config = config_of(max(1, 2 * Packing(corpus.documents, config).texts_per_epoch() // sequences))
    _train(checkpoint, config, corpus, output)


def _train(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path) -> None:
    from orthrus.training.trainer import Trainer, TrainingFailedError
    from orthrus.training.world import World

    world = World()
    try:
        trainer = Trainer(checkpoint, config, corpus, output, lambda: _validate(checkpoint, corpus), world)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: trainer.stop())
        if trainer.done:
            stderr.print(f"resumed after step {trainer.done} of {config.steps}")
        _follow(trainer, config, show=world.rank == 0)
    except TrainingFailedError as error:
        stderr.print(f"orthrus: {error}", markup=False, style="red")
        raise typer.Exit(1) from None
    finally:
        world.close()
    if trainer.done < config.steps:
        stderr.print(
            f"stopped after step {trainer.done} of {config.steps}, saved; the same command goes on", style="yellow"
        )
        raise typer.Exit(130)
    if world.rank == 0:
        print(f"done: best A {trainer.best:.2f} by real decoding; the adapter is {output / 'best'}")


def _follow(trainer: Trainer, config: TrainConfig, *, show: bool) -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True, disable=not show, speed_estimate_period=600) as bar:
        task = bar.add_task("", total=config.steps, completed=trainer.done)
        for step in trainer.run():
            shares = " ".join(f"{share:.2f}" for share in step.agreement[:8])
            speed = step.rows / step.seconds
            bar.update(
                task, completed=step.step, description=f"loss {step.loss:.3f}  agreement {shares}  {speed:.0f} rows/s"
            )
            if step.validation is not None and show:
                _print_validation(bar.console, step)


def _print_validation(console: Console, step: Step) -> None:
    assert step.validation is not None
    offsets = " ".join(f"{share:.2f}" for share in step.validation.by_offset)
    console.print(
        f"step {step.step}, {step.rows_total / 1e3:.0f}k rows: loss {step.loss:.3f}, held-out prompts decode with"
        f" A {step.validation.acceptance_length:.3f}, TPF {step.validation.tpf:.3f}, accepted by offset {offsets}",
        soft_wrap=True,
    )


def _validate(checkpoint: Checkpoint, corpus: Corpus) -> Validation:
    """Decode the held-out prompts by two-pass cycles with a copy of the decoder, prepared for inference."""
    from orthrus.bench import measure
    from orthrus.training.trainer import Validation

    found = measure.held_out_acceptance(checkpoint, [document.prompt for document in corpus.held_out])
    return Validation(found.acceptance_length, found.tpf, found.by_offset)


def _print_estimate(checkpoint: Checkpoint, config: TrainConfig) -> None:
    from orthrus.training.estimate import estimate

    e = estimate(checkpoint.decoder, config)
    console, gigabyte = Console(highlight=False), 2**30
    total = e.weight_bytes + e.optimiser_bytes + e.activation_bytes
    console.print(f"parameters: {e.trained / 1e6:.1f} M trained, {e.frozen / 1e6:.1f} M frozen")
    console.print(
        f"memory: {total / gigabyte:.2f} GiB (weights {e.weight_bytes / gigabyte:.2f}, gradients and moments"
        f" {e.optimiser_bytes / gigabyte:.2f}, activations of a packed text up to {e.activation_bytes / gigabyte:.2f})"
    )
    console.print(f"a step: {e.flops / 1e12:.2f} TFLOP for {e.rows} supervised rows at most")


def _print_text(checkpoint: Checkpoint, packing: Any, decode: Any) -> None:
    from orthrus.training.inspect import block_rows, words

    blocks, console = packing.blocks(0), Console(highlight=False)
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
        f" [green]targets[/], [dim]neither[/]. The first block, row by row (what it holds -> its target):"
    )
    for row, (held, target) in enumerate(block_rows(blocks, 0, decode)):
        console.print(f"  {row}: {held!r} -> {target!r}", markup=False)


def _torch_dtype(dtype: Dtype) -> Any:
    from orthrus.api import DTYPES

    return DTYPES[dtype.value]


def _token(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text
