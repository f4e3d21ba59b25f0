"""Writing checkpoints: the published Orthrus layout, and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import published
from orthrus.checkpoint.hub import Checkpoint
from orthrus.checkpoint.weights import rotary_order, split
from orthrus.model import families
from orthrus.model.decoder import Decoder


def tensors(decoder: Decoder, view: str) -> dict[str, Tensor]:
    """The weights of one view of an unprepared decoder: Hugging Face names, unfused, in the dtype of the decoder."""
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    exported: dict[str, Tensor] = {}
    for ours, theirs in families.sources(decoder.config, view).items():
        tensor, order = parameters[ours].detach(), rotary_order(decoder.config, ours)
        stored = tensor if order is None else tensor[order.argsort()]
        for name, part in zip(theirs, split(decoder.config, ours, stored, len(theirs)), strict=True):
            exported[name] = part.to(decoder.dtype).contiguous().clone()
    return exported


def export_published(checkpoint: Checkpoint, directory: Path) -> None:
    """Write an unprepared checkpoint in the published layout, tokenizer included.

    Raises ValueError where there is no diffusion view, OSError where the files cannot be written.
    """
    decoder = checkpoint.decoder
    if decoder.diffusion is None:
        raise ValueError("this checkpoint has no diffusion view to publish")
    content = {**checkpoint.hf_config, "dtype": str(decoder.dtype).removeprefix("torch.")}
    weights = {**tensors(decoder, "ar"), **tensors(decoder, "diffusion")}
    published.save(directory, content, decoder.diffusion, weights, decoder.draft_head)
    checkpoint.tokenizer.save_pretrained(directory)


def export_adapter(checkpoint: Checkpoint, directory: Path, provenance: dict[str, Any], *, int8: bool = False) -> None:
    """Write diffusion view and draft head of an unprepared checkpoint as an adapter.

    Raises ValueError and OSError as above.
    """
    decoder = checkpoint.decoder
    if decoder.diffusion is None:
        raise ValueError("this checkpoint has no diffusion view to save")
    config = adapters.AdapterConfig(
        checkpoint.backbone, adapters.shapes_of(decoder.config), decoder.diffusion, provenance
    )
    adapters.save(directory, config, tensors(decoder, "diffusion"), decoder.draft_head, int8=int8)
