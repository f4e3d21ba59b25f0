"""`orthrus train`: train a diffusion view for a backbone."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from orthrus.cli import _train_setup as setup
from orthrus.cli._shared import AllowOption, DeviceOption, Dtype, DtypeOption, ModelOption, stderr
from orthrus.cli._train_setup import EPOCHS, HEAD_EPOCHS, VALIDATE_EVERY
from orthrus.cli._training import follow, print_estimate, print_text, validate

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.training.config import TrainConfig
    from orthrus.training.data import Corpus
    from orthrus.training.world import World

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
    bool | None,
    typer.Option(
        "--train-last-row/--no-train-last-row",
        help="Also train the last row of a block, which gives one more draft.",
        show_default="as the view at the start, else yes",
    ),
]
MaskTokenOption = Annotated[
    str | None,
    typer.Option(help="Mask token, as text or id; it must never occur in chat.", show_default="the view's own"),
]


RankOption = Annotated[
    int | None,
    typer.Option(
        help="Train factors of this rank, such as 64 or 128, whose product is added to the AR projections: a small"
        " adapter. A view of --warm-start with other weights is approximated first. A higher --learning-rate suits"
        " them, such as 1e-3. 0: full projections.",
        show_default="that of the view at the start, else full",
        min=0,
    ),
]


def _known_objective(name: str) -> str:
    from orthrus.training import objectives

    objectives.load(name)
    return name


ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="What is minimised. kl: forward KL from the AR view. cross-entropy: of the tokens of the text."
        " total-variation: the share of drafts that `rejection` rejects, row by row. expected-prefix: one less the"
        " share of a block that it accepts before its first rejected draft. mixed: kl where the views differ,"
        " total-variation where they agree.",
        callback=_known_objective,
    ),
]
DecayOption = Annotated[
    float, typer.Option(help="Loss weight of a row relative to the row before it; 0.6 favours the first drafts.")
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        help="Times that all texts are used.", show_default=f"{EPOCHS}, with --head-only {HEAD_EPOCHS}", min=1
    ),
]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps.", show_default="--epochs", min=1)]
SequenceLengthOption = Annotated[int, typer.Option(help="Tokens per packed text.")]
RootsOption = Annotated[int, typer.Option(help="Blocks in each packed text.")]
SequencesOption = Annotated[
    int, typer.Option(help="Packed texts per optimiser step, split over processes and accumulated.")
]
LearningRateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
ScheduleOption = Annotated[
    str,
    typer.Option(
        help="Learning rate after the warm-up. cosine: a cosine to the end. wsd: stable, then a decay; can be extended."
    ),
]
WarmupOption = Annotated[float, typer.Option(help="Fraction of the steps used for learning-rate warm-up.")]
DecayShareOption = Annotated[float, typer.Option(help="Fraction of the steps, the last ones, in which wsd decays.")]
FinalRateOption = Annotated[float, typer.Option(help="Learning rate at the end, as a fraction of the peak.")]
ExtendOption = Annotated[
    int,
    typer.Option(
        help="Steps added, in all, to a run of wsd, which goes on from before its decay; a larger number adds more.",
        min=0,
    ),
]
EmaOption = Annotated[
    float,
    typer.Option(
        help="Share of the average of the weights that a step keeps, such as 0.999; the average is validated and saved."
        " 0: none."
    ),
]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay of AdamW.")]
ClipOption = Annotated[float, typer.Option(help="Maximum gradient norm.")]
HeadUnitsOption = Annotated[
    int | None,
    typer.Option(
        help="Units of the draft head, a multiple of 16; 0 trains none.",
        show_default="those of the head at the start, else 0.4 hidden sizes",
    ),
]
HeadOnlyOption = Annotated[
    bool, typer.Option("--head-only", help="Train the draft head alone, on the view of --warm-start as it is.")
]
KeepRowsOption = Annotated[
    bool,
    typer.Option(help="Keep the rows that --head-only computes once, in the directory of the run, after its end."),
]
KeepFrozenOption = Annotated[
    bool,
    typer.Option(
        "--keep-frozen-states",
        help="Keep on disk what the AR view computes for each text, such as 14 kB per token, so that epochs after the"
        " first run the diffusion view alone.",
    ),
]
HeadRateOption = Annotated[float, typer.Option(help="Peak learning rate of the draft head.")]
HeadObjectiveOption = Annotated[
    str, typer.Option(help="Objective of the draft head, by the same names.", callback=_known_objective)
]
HeadGradientOption = Annotated[
    float,
    typer.Option(help="Weight of the draft head's loss in what the view learns; 0: its own objective alone."),
]
DraftVocabularyOption = Annotated[
    int | None,
    typer.Option(
        help="Draft only this many tokens, the most frequent ones of the answers, such as 32000; 0: all.",
        show_default="those of the view at the start, else all",
        min=0,
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the data order and the choice of roots.")]
HeldOutOption = Annotated[int, typer.Option(help="Records held out for validation and calibration.")]
ValidateEveryOption = Annotated[
    int | None,
    typer.Option(help="Steps between validations.", show_default=f"{VALIDATE_EVERY}, with --head-only an epoch", min=1),
]
ValidationNodesOption = Annotated[
    int, typer.Option(help="Drafts of the trees by which held-out records are decoded; 0: chains.", min=0)
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
    train_last_row: TrainLastRowOption = None,
    mask_token: MaskTokenOption = None,
    rank: RankOption = None,
    objective: ObjectiveOption = "kl",
    offset_decay: DecayOption = 1.0,
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    sequence_length: SequenceLengthOption = 2048,
    roots: RootsOption = 256,
    sequences: SequencesOption = 4,
    learning_rate: LearningRateOption = 2e-4,
    schedule: ScheduleOption = "cosine",
    warmup: WarmupOption = 0.05,
    decay_share: DecayShareOption = 0.2,
    final_rate: FinalRateOption = 0.0,
    extend: ExtendOption = 0,
    ema: EmaOption = 0.0,
    weight_decay: WeightDecayOption = 0.0,
    clip: ClipOption = 1.0,
    head_units: HeadUnitsOption = None,
    head_only: HeadOnlyOption = False,
    head_learning_rate: HeadRateOption = 3e-3,
    head_objective: HeadObjectiveOption = "kl",
    head_gradient: HeadGradientOption = 0.0,
    keep_rows: KeepRowsOption = True,
    keep_frozen_states: KeepFrozenOption = False,
    draft_vocabulary: DraftVocabularyOption = None,
    seed: SeedOption = 0,
    held_out: HeldOutOption = 32,
    validate_every: ValidateEveryOption = None,
    validation_nodes: ValidationNodesOption = 8,
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
    options = locals()
    loaded = None if estimate else setup.load(model, warm_start, dtype, device, allow_other_backbone)
    decoder = setup.give_view(model, loaded, options)
    config = setup.config_of(decoder, options)
    if loaded is None:
        print_estimate(decoder, config)
    else:
        _show_or_train(loaded, config, options)


class Keep(NamedTuple):
    """What stays on disk: the rows of a draft head after a run, and what the frozen view computes during one."""

    rows: bool
    frozen_states: bool


def _show_or_train(loaded: Checkpoint, config: TrainConfig, options: dict[str, Any]) -> None:
    """Print a packed text, or train. options: those of the command, by name."""
    corpus = setup.corpus(options["data"], loaded, config)
    if options["inspect"]:
        print_text(corpus, config, loaded.tokenizer.decode)
        return
    setup.restrict_drafts(loaded, corpus, options["draft_vocabulary"])
    scheduled = setup.scheduled(config, corpus, *(options[name] for name in ("epochs", "steps", "validate_every")))
    _train(loaded, scheduled, corpus, options["output"], Keep(options["keep_rows"], options["keep_frozen_states"]))


def _train(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path, keep: Keep) -> None:
    from orthrus.training.trainer import ROWS
    from orthrus.training.world import World

    if config.head_only:
        setup.check_view(checkpoint)
    world = World(checkpoint.decoder.device)
    code = _run(checkpoint, config, corpus, output, world, keep)
    if world.rank == 0 and not code and not keep.rows:
        shutil.rmtree(output / ROWS, ignore_errors=True)
    world.end(code)
    if code:
        raise typer.Exit(code)


def _run(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, output: Path, world: World, keep: Keep) -> int:
    """Train to the end, or until a signal comes. Returns the exit code."""
    from orthrus.training.trainer import Trainer, TrainingFailedError

    try:
        with world:
            decode = partial(validate, checkpoint, corpus, config.validation_nodes)
            kept = keep.frozen_states
            trainer = Trainer(checkpoint, config, corpus, output, decode, world, keep_frozen_states=kept)
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, lambda *_: trainer.stop())
            if trainer.done:
                where = ", the last one before the decay" if trainer.rewound else ""
                stderr.print(f"resumed after step {trainer.done} of {config.total_steps}{where}")
            follow(trainer, config, show=world.rank == 0)
    except TrainingFailedError as error:
        stderr.print(f"orthrus: {error}", markup=False, style="red")
        return 1
    if trainer.done < config.total_steps:
        stderr.print(
            f"stopped after step {trainer.done} of {config.total_steps}; the state is saved, run the same command to"
            " resume",
            style="yellow",
        )
        return 130
    if world.rank == 0:
        print(f"done: best A {trainer.best:.2f} on the held-out records; the adapter is {output / 'best'}")
    return 0
