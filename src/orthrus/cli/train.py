"""`orthrus train`: train a diffusion view for a backbone."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from orthrus.cli._shared import AllowOption, DeviceOption, Dtype, DtypeOption, ModelOption, quiet, stderr

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.model.decoder import Decoder
    from orthrus.training.config import TrainConfig
    from orthrus.training.data import Corpus
    from orthrus.training.packing import Packing
    from orthrus.training.trainer import Progress as Step
    from orthrus.training.trainer import Trainer, Validation
    from orthrus.training.world import World

STYLES = {"other": "dim", "target": "green", "root": "bold cyan", "root and target": "bold cyan underline"}


OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Directory of the run. The same command resumes the run.")
]
DataOption = Annotated[
    list[Path],
    typer.Option(help="Directory written by `orthrus distill`, or JSONL of conversations; may be repeated."),
]
WarmStartOption = Annotated[
    str | None, typer.Option(help="Adapter to initialise the view from, instead of the AR projections.")
]
BlockSizeOption = Annotated[int | None, typer.Option(help="K, rows per block.", show_default="the view's own, else 32")]
TrainLastRowOption = Annotated[
    bool, typer.Option(help="Also train the last row of a block, which gives one more draft.")
]
MaskTokenOption = Annotated[
    str | None,
    typer.Option(help="Mask token, as text or id; it must never occur in chat.", show_default="the view's own"),
]
ObjectiveOption = Annotated[
    str, typer.Option(help="kl: forward KL from the AR view. cross-entropy: the tokens of the text.")
]
DecayOption = Annotated[
    float, typer.Option(help="Loss weight of a row relative to the row before it; 0.6 favours the first drafts.")
]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="two epochs", min=1)]
SequenceLengthOption = Annotated[int, typer.Option(help="Tokens per packed text.")]
RootsOption = Annotated[int, typer.Option(help="Blocks in each packed text.")]
SequencesOption = Annotated[
    int, typer.Option(help="Packed texts per optimiser step, split over processes and accumulated.")
]
LearningRateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
WarmupOption = Annotated[float, typer.Option(help="Fraction of the steps used for learning-rate warm-up.")]
FinalRateOption = Annotated[
    float, typer.Option(help="Final learning rate of the cosine schedule, as a fraction of the peak.")
]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay of AdamW.")]
ClipOption = Annotated[float, typer.Option(help="Maximum gradient norm.")]
HeadUnitsOption = Annotated[
    int | None,
    typer.Option(help="Units of the draft head, a multiple of 16; 0 trains none.", show_default="0.4 hidden sizes"),
]
HeadOnlyOption = Annotated[
    bool, typer.Option("--head-only", help="Train the draft head alone, on the view of --warm-start as it is.")
]
HeadRateOption = Annotated[float, typer.Option(help="Peak learning rate of the draft head.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the data order and the choice of roots.")]
HeldOutOption = Annotated[int, typer.Option(help="Records held out for validation by decoding.")]
ValidateEveryOption = Annotated[int, typer.Option(help="Steps between validations.")]
SaveEveryOption = Annotated[int, typer.Option(help="Steps between saved states.")]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Print parameters, memory and FLOPs of a step, then exit.")
]
InspectOption = Annotated[
    bool, typer.Option("--inspect", help="Print a packed text with roots and targets, then exit.")
]


def command(
    output: OutputOption,
    data: DataOption,
    model: ModelOption = "smollm2-demo",
    warm_start: WarmStartOption = None,
    block_size: BlockSizeOption = None,
    train_last_row: TrainLastRowOption = True,
    mask_token: MaskTokenOption = None,
    objective: ObjectiveOption = "kl",
    offset_decay: DecayOption = 1.0,
    steps: StepsOption = None,
    sequence_length: SequenceLengthOption = 2048,
    roots: RootsOption = 256,
    sequences: SequencesOption = 4,
    learning_rate: LearningRateOption = 2e-4,
    warmup: WarmupOption = 0.05,
    final_rate: FinalRateOption = 0.0,
    weight_decay: WeightDecayOption = 0.0,
    clip: ClipOption = 1.0,
    head_units: HeadUnitsOption = None,
    head_only: HeadOnlyOption = False,
    head_learning_rate: HeadRateOption = 3e-3,
    seed: SeedOption = 0,
    held_out: HeldOutOption = 32,
    validate_every: ValidateEveryOption = 500,
    save_every: SaveEveryOption = 100,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    estimate: EstimateOption = False,
    inspect: InspectOption = False,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Train the diffusion view of a frozen backbone, and its draft head.

    Ctrl-C and SIGTERM finish the step, save and exit; the same command resumes the run, with bit-identical results.
    `best/` in the output is the adapter with the highest acceptance length on the held-out prompts.
    """
    from orthrus.training import objectives
    from orthrus.training.config import TrainConfig
    from orthrus.training.packing import Packing

    objectives.load(objective)
    loaded = None if estimate else _load(model, warm_start, dtype, device, allow_other_backbone)
    decoder = _give_view(model, loaded, block_size, mask_token, last_row=train_last_row)
    view = decoder.diffusion
    assert view is not None
    config = TrainConfig(
        view.block_size, view.trained_rows, view.mask_token_id, objective, offset_decay, sequence_length, roots,
        sequences, steps or 1, learning_rate, warmup, final_rate, (0.9, 0.95), weight_decay, clip, seed, held_out,
        validate_every, save_every, _units(decoder, head_units), head_only, head_learning_rate,
    )  # fmt: skip
    if loaded is None:
        _print_estimate(decoder, config)
        return
    corpus = _corpus(data, loaded, config)
    packing = Packing(corpus.documents, config)
    if inspect:
        _print_text(packing, loaded.tokenizer.decode)
        return
    _train(loaded, replace(config, steps=steps or max(1, 2 * packing.texts_per_epoch() // sequences)), corpus, output)


def _load(model: str, warm_start: str | None, dtype: Dtype, device: str, allow_other_backbone: bool) -> Checkpoint:
    """Load the checkpoint with plain weights and without the demo's bundled adapter."""
    from orthrus.api import DTYPES
    from orthrus.checkpoint import hub

    quiet()
    with stderr.status(f"loading {model}"):
        loaded = hub.load(
            model, adapter=warm_start or hub.NO_ADAPTER, dtype=DTYPES[dtype.value], device=device,
            allow_other_backbone=allow_other_backbone,
        )  # fmt: skip
    for warning in loaded.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    return loaded


def _units(decoder: Decoder, asked: int | None) -> int:
    from orthrus.model.draft_head import default_units

    return default_units(decoder.config.hidden_size) if asked is None else asked


def _corpus(paths: list[Path], checkpoint: Checkpoint, config: TrainConfig) -> Corpus:
    """The records of all paths. Prints what was skipped or cut."""
    from orthrus.training import data

    corpus = data.load(paths, checkpoint.tokenizer, checkpoint.end_token_ids, config)
    for notice in corpus.notices:
        stderr.print(f"note: {notice}", style="yellow", markup=False)
    return corpus


def _give_view(
    model: str, checkpoint: Checkpoint | None, block_size: int | None, mask_token: str | None, *, last_row: bool
) -> Decoder:
    """The decoder with a view to train. Without a loaded checkpoint it has shapes but no weights."""
    from orthrus.checkpoint import hub
    from orthrus.config import DiffusionConfig

    if checkpoint is not None:
        mask = int(mask_token) if mask_token is not None and mask_token.isdecimal() else mask_token
        return hub.give_view(checkpoint, block_size, mask, last_row=last_row)
    decoder = hub.describe(model, hub.NO_ADAPTER).decoder
    rows = block_size or (decoder.diffusion.block_size if decoder.diffusion else 32)
    return decoder.set_view(DiffusionConfig(rows, 0, rows if last_row else rows - 1))


def _train(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path) -> None:
    from orthrus.training.world import World

    world = World()
    code = _run(checkpoint, config, corpus, output, world)
    world.end(code)
    if code:
        raise typer.Exit(code)


def _run(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path, world: World) -> int:
    """Train to the end, or until a signal comes. Returns the exit code."""
    from orthrus.training.trainer import Trainer, TrainingFailedError

    try:
        with world:
            trainer = Trainer(checkpoint, config, corpus, output, lambda: _validate(checkpoint, corpus), world)
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, lambda *_: trainer.stop())
            if trainer.done:
                stderr.print(f"resumed after step {trainer.done} of {config.steps}")
            _follow(trainer, config, show=world.rank == 0)
    except TrainingFailedError as error:
        stderr.print(f"orthrus: {error}", markup=False, style="red")
        return 1
    if trainer.done < config.steps:
        stderr.print(
            f"stopped after step {trainer.done} of {config.steps}; the state is saved, run the same command to resume",
            style="yellow",
        )
        return 130
    if world.rank == 0:
        print(f"done: best A {trainer.best:.2f} on the held-out prompts; the adapter is {output / 'best'}")
    return 0


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
    """Decode the held-out prompts by two-pass cycles with a copy of the model that is prepared for inference."""
    from orthrus.bench import measure
    from orthrus.training.trainer import Validation

    acceptance = measure.held_out_acceptance(checkpoint, [document.prompt for document in corpus.held_out])
    return Validation(acceptance.acceptance_length, acceptance.tpf, acceptance.by_offset)


def _print_estimate(decoder: Decoder, config: TrainConfig) -> None:
    from orthrus.training.estimate import estimate

    e = estimate(decoder, config)
    console, gigabyte = Console(highlight=False), 2**30
    total = e.weight_bytes + e.optimiser_bytes + e.activation_bytes
    console.print(f"parameters: {e.trained / 1e6:.1f} M trained, {e.frozen / 1e6:.1f} M frozen")
    console.print(
        f"memory: {total / gigabyte:.2f} GiB (weights {e.weight_bytes / gigabyte:.2f}, gradients and moments"
        f" {e.optimiser_bytes / gigabyte:.2f}, activations of a packed text up to {e.activation_bytes / gigabyte:.2f})"
    )
    console.print(f"a step: {e.flops / 1e12:.2f} TFLOP for {e.rows} supervised rows at most")


def _print_text(packing: Packing, decode: Any) -> None:
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
        f" [green]targets[/], [dim]other tokens[/]. The first block, row by row (input -> target):"
    )
    for row, (held, target) in enumerate(block_rows(blocks, 0, decode)):
        console.print(f"  {row}: {held!r} -> {target!r}", markup=False)
