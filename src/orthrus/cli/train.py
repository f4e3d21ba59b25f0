"""`orthrus train`: train a diffusion view for a backbone."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orthrus.cli._shared import AllowOption, DeviceOption, Dtype, DtypeOption, ModelOption, quiet, stderr
from orthrus.cli._training import bfloat16_slowdown, follow, print_estimate, print_text

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.model.decoder import Decoder
    from orthrus.training.config import TrainConfig
    from orthrus.training.data import Corpus
    from orthrus.training.tasks import Validation
    from orthrus.training.world import World

EPOCHS, HEAD_EPOCHS, VALIDATE_EVERY = 2, 4, 500
MUCH_SLOWER = 3
"""How many times slower than float32 bfloat16 products must be for a note."""

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


def _known_objective(name: str) -> str:
    from orthrus.training import objectives

    objectives.load(name)
    return name


ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="kl: forward KL from the AR view. cross-entropy: the tokens of the text. total-variation: the share of"
        " drafts that `rejection` rejects. expected-prefix: the share it accepts before the first rejected of a block.",
        callback=_known_objective,
    ),
]
DecayOption = Annotated[
    float, typer.Option(help="Loss weight of a row relative to the row before it; 0.6 favours the first drafts.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option(help="Times that all texts are used.", show_default=f"2, with --head-only {HEAD_EPOCHS}", min=1),
]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="--epochs", min=1)]
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
KeepRowsOption = Annotated[
    bool,
    typer.Option(help="Keep the rows that --head-only computes once, in the directory of the run, after its end."),
]
HeadRateOption = Annotated[float, typer.Option(help="Peak learning rate of the draft head.")]
HeadObjectiveOption = Annotated[
    str, typer.Option(help="Objective of the draft head, by the same names.", callback=_known_objective)
]
SeedOption = Annotated[int, typer.Option(help="Seed of the data order and the choice of roots.")]
HeldOutOption = Annotated[int, typer.Option(help="Records held out for validation and calibration.")]
ValidateEveryOption = Annotated[
    int | None,
    typer.Option(help="Steps between validations.", show_default=f"{VALIDATE_EVERY}, with --head-only an epoch", min=1),
]
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
    epochs: EpochsOption = None,
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
    head_objective: HeadObjectiveOption = "kl",
    keep_rows: KeepRowsOption = True,
    seed: SeedOption = 0,
    held_out: HeldOutOption = 32,
    validate_every: ValidateEveryOption = None,
    save_every: SaveEveryOption = 100,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    estimate: EstimateOption = False,
    inspect: InspectOption = False,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Train the diffusion view of a frozen backbone, and its draft head.

    Ctrl-C and SIGTERM finish the step, save and exit; the same command resumes the run, with bit-identical results.
    `best/` in the output is the adapter with the highest acceptance length on the held-out records.
    """
    from orthrus.training.config import TrainConfig
    from orthrus.training.packing import Packing

    loaded = None if estimate else _load(model, warm_start, dtype, device, allow_other_backbone)
    decoder = _give_view(model, loaded, block_size, mask_token, last_row=train_last_row)
    view = decoder.diffusion
    assert view is not None
    config = TrainConfig(
        view.block_size, view.trained_rows, view.mask_token_id, objective, offset_decay, sequence_length, roots,
        sequences, steps or 1, learning_rate, warmup, final_rate, (0.9, 0.95), weight_decay, clip, seed, held_out,
        validate_every or 1, save_every, _units(decoder, head_units), head_only, head_learning_rate, head_objective,
    )  # fmt: skip
    if loaded is None:
        print_estimate(decoder, config)
        return
    corpus = _corpus(data, loaded, config)
    if inspect:
        print_text(Packing(corpus.documents, config), loaded.tokenizer.decode)
    else:
        _train(loaded, _scheduled(config, corpus, epochs, steps, validate_every), corpus, output, keep_rows=keep_rows)


def _scheduled(
    config: TrainConfig, corpus: Corpus, epochs: int | None, steps: int | None, validate_every: int | None
) -> TrainConfig:
    """The config with the steps of its epochs, unless they are given, and with the default of the validations."""
    from orthrus.training.packing import Packing

    packing = Packing(corpus.documents, config)
    texts = packing.blocks_per_epoch() / config.roots if config.head_only else packing.texts_per_epoch()
    epoch, default = texts / config.sequences, HEAD_EPOCHS if config.head_only else EPOCHS
    every = max(1, int(epoch)) if config.head_only else VALIDATE_EVERY
    return replace(
        config, steps=steps or max(1, int((epochs or default) * epoch)), validate_every=validate_every or every
    )


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
    if dtype is Dtype.bfloat16 and device == "cpu" and (slowdown := bfloat16_slowdown()) > MUCH_SLOWER:
        stderr.print(
            f"note: this processor multiplies bfloat16 {slowdown:.0f} times slower than float32; --dtype float32 trains"
            " faster and needs twice the memory",
            style="yellow",
        )
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


def _train(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path, *, keep_rows: bool) -> None:
    from orthrus.training.trainer import ROWS
    from orthrus.training.world import World

    world = World()
    code = _run(checkpoint, config, corpus, output, world)
    if world.rank == 0 and not code and not keep_rows:
        shutil.rmtree(output / ROWS, ignore_errors=True)
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
            follow(trainer, config, show=world.rank == 0)
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
        print(f"done: best A {trainer.best:.2f} on the held-out records; the adapter is {output / 'best'}")
    return 0


def _validate(checkpoint: Checkpoint, corpus: Corpus) -> Validation:
    """Decode the held-out prompts by two-pass cycles with a copy of the model that is prepared for inference."""
    from orthrus.bench import measure
    from orthrus.training.tasks import Validation

    acceptance = measure.held_out_acceptance(checkpoint, [document.prompt for document in corpus.held_out])
    return Validation(acceptance.acceptance_length, acceptance.tpf, acceptance.by_offset)
