"""What several verbs share: options, loading with a notice, tables."""

from __future__ import annotations

import logging
import warnings
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from orthrus.api import Model


class Dtype(StrEnum):
    """Computing precision."""

    bfloat16 = "bfloat16"
    float32 = "float32"


ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="smollm2-demo, a checkpoint directory, a .gguf file, or a hub id (owner/name)."),
]
AdapterOption = Annotated[str | None, typer.Option(help="Directory of a trained diffusion view for this backbone.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Computing precision.")]
DeviceOption = Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cuda:1, ...")]
AllowOption = Annotated[
    bool, typer.Option("--allow-other-backbone", help="Load an adapter trained on other weights of the same shape.")
]
stderr = Console(stderr=True, highlight=False)


def load_model(name: str, adapter: str | None, dtype: Dtype, device: str, allow_other_backbone: bool = False) -> Model:
    """Load a model with a spinner on stderr; its warnings go there too."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
    with stderr.status(f"loading {name}"):
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        import orthrus

        model: Model = orthrus.load(
            name, adapter=adapter, dtype=dtype.value, device=device, allow_other_backbone=allow_other_backbone
        )
    for warning in model.checkpoint.warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    return model


def without_none(**values: Any) -> dict[str, Any]:
    """Drop the options that were not given."""
    return {name: value for name, value in values.items() if value is not None}
