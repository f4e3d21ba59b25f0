"""What `orthrus train` does before the first step: it prepares the model, its view, the texts and the schedule."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthrus.cli._shared import Dtype, loading, print_warning, quiet, stderr
from orthrus.cli._training import bfloat16_slowdown

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint
    from orthrus.model.decoder import Decoder
    from orthrus.training.config import TrainConfig
    from orthrus.training.data import Corpus

EPOCHS, HEAD_EPOCHS, VALIDATE_EVERY = 2, 4, 500
MUCH_SLOWER = 3
"""How many times slower than float32 bfloat16 products must be for a note."""


def check_view(checkpoint: Checkpoint) -> None:
    """Raise ValueError where there is no trained view for a draft head."""
    if checkpoint.view == "none" or checkpoint.view.startswith("untrained"):
        raise ValueError("--head-only needs a view that is trained already: give one by --warm-start")


def scheduled(
    config: TrainConfig, corpus: Corpus, epochs: int | None, steps: int | None, validate_every: int | None
) -> TrainConfig:
    """The config with the steps of its epochs, unless they are given, and with the default of the validations."""
    from orthrus.training.packing import Packing

    if epochs is not None and steps is not None:
        raise ValueError("--epochs and --steps both say when training ends: give one of them")
    packing = Packing(corpus.documents, config)
    texts = packing.blocks_per_epoch() / config.roots if config.head_only else packing.texts_per_epoch()
    epoch, default = texts / config.sequences, HEAD_EPOCHS if config.head_only else EPOCHS
    every = max(1, int(epoch)) if config.head_only else VALIDATE_EVERY
    return replace(
        config, steps=steps or max(1, int((epochs or default) * epoch)), validate_every=validate_every or every
    )


def load(model: str, warm_start: str | None, dtype: Dtype, device: str, allow_other_backbone: bool) -> Checkpoint:
    """Load the checkpoint with plain weights and without a bundled adapter."""
    from orthrus.api import DTYPES
    from orthrus.checkpoint import hub
    from orthrus.training.world import device_of_process

    quiet()
    with loading(model):
        loaded = hub.load(
            model, adapter=warm_start or hub.NO_ADAPTER, dtype=DTYPES[dtype.value], device=device_of_process(device),
            allow_other_backbone=allow_other_backbone,
        )  # fmt: skip
    for warning in loaded.warnings:
        print_warning(f"warning: {warning}")
    if dtype is Dtype.bfloat16 and device == "cpu" and (slowdown := bfloat16_slowdown()) > MUCH_SLOWER:
        stderr.print(
            f"note: this processor multiplies bfloat16 {slowdown:.0f} times slower than float32; --dtype float32 trains"
            " faster and needs twice the memory",
            style="yellow",
        )
    return loaded


def config_of(decoder: Decoder, options: dict[str, Any]) -> TrainConfig:
    """The settings of a run: the options of the command under their names, and what the view says where an option is
    None. Steps and validations are those of `scheduled`."""
    from orthrus.checkpoint import low_rank
    from orthrus.model.draft_head import default_units
    from orthrus.training.config import TrainConfig

    view, head = decoder.diffusion, decoder.draft_head
    assert view is not None
    of_view = {
        "block_size": view.block_size, "trained_rows": view.trained_rows, "mask_token_id": view.mask_token_id,
        "head_units": head.units if head else default_units(decoder.config.hidden_size),
        "draft_vocabulary": len(view.draft_vocabulary or ()), "rank": low_rank.rank_of(decoder) or 0,
    }  # fmt: skip
    names = {field.name for field in fields(TrainConfig)}
    chosen = {name: value for name, value in options.items() if name in names and value is not None}
    return TrainConfig(**(of_view | chosen))


def corpus(paths: list[Path], checkpoint: Checkpoint, config: TrainConfig) -> Corpus:
    """The records of all paths. Prints what was skipped or cut."""
    from orthrus.training import data

    corpus = data.load(paths, checkpoint.tokenizer, checkpoint.end_token_ids, config, checkpoint.backbone)
    for notice in corpus.notices:
        print_warning(f"note: {notice}")
    return corpus


def restrict_drafts(checkpoint: Checkpoint, corpus: Corpus, size: int | None) -> None:
    """Give the view a draft vocabulary of this size, by the answers of a corpus; 0 for none, None for no change."""
    from orthrus.training import draft_vocabulary

    view = checkpoint.decoder.diffusion
    if size is None or view is None:
        return
    tokens = None
    if size:
        documents = [*corpus.documents, *corpus.held_out]
        vocabulary = draft_vocabulary.choose(documents, size, checkpoint.decoder.config.vocab_size)
        tokens = vocabulary.tokens
        stderr.print(f"draft vocabulary: {size} tokens, {vocabulary.coverage:.2%} of those of the answers")
    checkpoint.decoder.set_view(replace(view, draft_vocabulary=tokens))


def give_view(model: str, checkpoint: Checkpoint | None, options: dict[str, Any]) -> Decoder:
    """The decoder with a view to train, as the options of the command ask for. Without a loaded checkpoint it has
    shapes but no weights."""
    from orthrus.checkpoint import hub, initial_view, low_rank
    from orthrus.config import DiffusionConfig

    names = ("warm_start", "block_size", "mask_token", "train_last_row", "rank")
    warm_start, block_size, mask_token, last_row, rank = (options[name] for name in names)
    if checkpoint is not None:
        mask = int(mask_token) if mask_token is not None and mask_token.isdecimal() else mask_token
        decoder = initial_view.give_view(checkpoint, block_size, mask, last_row=last_row)
        if rank is not None:
            low_rank.set_rank(decoder, rank or None, options["seed"])
        return decoder
    decoder = hub.describe(model, warm_start or hub.NO_ADAPTER).decoder
    rows = block_size or (decoder.diffusion.block_size if decoder.diffusion else 32)
    drafted = decoder.diffusion.draft_vocabulary if decoder.diffusion else None
    trained = initial_view.trained_rows(decoder.diffusion, rows, last_row)
    decoder.set_view(DiffusionConfig(rows, 0, trained, draft_vocabulary=drafted))
    if rank is not None:
        low_rank.make_empty(decoder, rank or None)
    return decoder
