"""`orthrus export`: a checkpoint in the published layout, or an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orthrus.cli._shared import AdapterOption, AllowOption, Dtype, ModelOption, quiet, stderr

if TYPE_CHECKING:
    from orthrus.checkpoint.hub import Checkpoint


class Layout(StrEnum):
    """Layout of the output directory."""

    published = "published"
    adapter = "adapter"


RankOption = Annotated[
    int | None,
    typer.Option(
        help="Store an adapter's projections as those of the backbone and factors of this rank, such as 64 or 128, by a"
        " truncated SVD: a small adapter. 0: full projections.",
        show_default="that of the view, else full",
        min=0,
    ),
]


VocabularyOption = Annotated[
    int | None,
    typer.Option(
        help="Draft only this many tokens, the most frequent ones of the answers of --data, such as 32000; 0: all.",
        show_default="those of the view, else all",
        min=0,
    ),
]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; it must be empty or absent.")],
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    mean_with: Annotated[
        list[str] | None,
        typer.Option(help="Write the mean of the weights of --adapter and of this one; may be repeated."),
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="published: backbone and view together, as OrthrusLM checkpoints are. adapter: the view alone."
        ),
    ] = Layout.published,
    int8: Annotated[
        bool, typer.Option("--int8", help="Store an adapter's matrices in int8 with a scale per row: half the size.")
    ] = False,
    rank: RankOption = None,
    draft_vocabulary: VocabularyOption = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Answers for --draft-vocabulary, as `orthrus train` reads them; may be repeated."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the written weights.")] = Dtype.bfloat16,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Write a checkpoint that `--model` reads (published layout), or an adapter that `--adapter` reads."""
    from orthrus.api import DTYPES
    from orthrus.checkpoint import export, hub, low_rank

    if bool(draft_vocabulary) != bool(data):
        raise ValueError("--draft-vocabulary counts the tokens of answers: give it and --data together")
    _check(output, layout, int8=int8, rank=rank)
    if rank:  # before gigabytes are read
        low_rank.check_rank(hub.describe(model, adapter).decoder.config, rank)
    quiet()
    with stderr.status(f"loading {model}"):
        checkpoint, *others = [
            hub.load(model, adapter=own, dtype=DTYPES[dtype.value], allow_other_backbone=allow_other_backbone)
            for own in (adapter, *(mean_with or ()))
        ]
    provenance = checkpoint.provenance
    if others:
        export.average(checkpoint, others)
        apart = {name: value for name, value in provenance.items() if name != "validation"}  # of the first one alone
        provenance = {**apart, "mean_with": [other.provenance for other in others]}
    if rank is not None:
        low_rank.set_rank(checkpoint.decoder, rank or None)
    if draft_vocabulary is not None:
        export.set_draft_vocabulary(checkpoint, _most_frequent(checkpoint, data or [], draft_vocabulary))
    with stderr.status(f"writing {output}"):
        if layout is Layout.published:
            export.export_published(checkpoint, output)
        else:
            export.export_adapter(checkpoint, output, provenance, int8=int8)
    size = sum(file.stat().st_size for file in output.iterdir())
    views = " and ".join(own.view for own in (checkpoint, *others))
    print(f"{output}: {size / 1e6:.1f} MB, diffusion view: {'mean of ' if others else ''}{views}")


def _check(output: Path, layout: Layout, *, int8: bool, rank: int | None) -> None:
    """Raise ValueError where the options cannot be met."""
    if rank and layout is Layout.published:
        raise ValueError(
            "--rank is for adapters; the published layout stores full projections: drop --rank, or add --layout adapter"
        )
    if int8 and layout is Layout.published:
        raise ValueError(
            "--int8 is for adapters; the published layout stores plain weights: drop --int8, or add --layout adapter"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty directory; choose another --output")


def _most_frequent(checkpoint: Checkpoint, data: list[Path], size: int) -> tuple[int, ...] | None:
    """The tokens of a draft vocabulary; None for all."""
    from orthrus.training import draft_vocabulary

    if not size:
        return None
    vocabulary = draft_vocabulary.of_data(data, checkpoint, size)
    print(f"draft vocabulary: {size} tokens, {vocabulary.coverage:.2%} of those of the answers")
    return vocabulary.tokens
