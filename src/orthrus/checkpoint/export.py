"""Writing checkpoints: the published Orthrus layout, and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import low_rank, published
from orthrus.checkpoint.hub import Checkpoint
from orthrus.checkpoint.weights import rotary_order, split
from orthrus.file_cache import save_json
from orthrus.model.decoder import Decoder
from orthrus.model.tensor_names import sources


def tensors(decoder: Decoder, view: str, *, factors: bool = False) -> dict[str, Tensor]:
    """The weights of one view of an unprepared decoder: Hugging Face names, unfused, in the dtype of the decoder.
    factors: those of a low-rank view as they are, and not merged."""
    parameters: dict[str, Tensor] = dict(decoder.named_parameters(remove_duplicate=False))
    names = low_rank.sources(decoder.config) if factors else sources(decoder.config, view)
    if not factors:
        parameters |= low_rank.merged(decoder)
    exported: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        tensor, order = parameters[ours].detach(), rotary_order(decoder.config, ours)
        stored = tensor if order is None else tensor[order.argsort()]
        for name, part in zip(theirs, split(decoder.config, ours, stored, len(theirs)), strict=True):
            exported[name] = part.to(decoder.dtype).contiguous().clone()
    return exported


def average(checkpoint: Checkpoint, others: Sequence[Checkpoint]) -> None:
    """Replace view and draft head of an unprepared checkpoint by the mean of its weights and those of the others, such
    as of two runs that began at one view.

    Low-rank views are merged, for a mean of factors is none of weights. Raises ValueError where one has no view or
    draft head, or others shapes, or blocks of another kind.
    """
    for made in (checkpoint, *others):
        low_rank.set_rank(made.decoder, None)
    found = [_drafting_parameters(own) for own in (checkpoint, *others)]
    shapes = [{name: parameter.shape for name, parameter in own.items()} for own in found]
    configs = [own.decoder.diffusion for own in (checkpoint, *others)]
    blocks = [config and replace(config, inverse_temperatures=None) for config in configs]
    for other, *own in zip(others, shapes[1:], blocks[1:], strict=True):
        if own != [shapes[0], blocks[0]]:
            raise ValueError(
                f"{other.view}: its diffusion view and draft head are not of the form of those of {checkpoint.view}:"
                " only adapters of one backbone, block size, mask token and number of head units have a mean"
            )
    for name, parameter in found[0].items():
        parameter.data = torch.stack([own[name].detach().float() for own in found]).mean(dim=0).to(parameter.dtype)


def _drafting_parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    parameters = checkpoint.decoder.named_parameters()
    return {name: own for name, own in parameters if ".diffusion." in name or name.startswith("draft_head.")}


def set_draft_vocabulary(checkpoint: Checkpoint, tokens: tuple[int, ...] | None) -> None:
    """Let the view of a checkpoint draft these tokens alone; None for all. Its weights stay as they are.

    Raises ValueError where there is no view.
    """
    view = checkpoint.decoder.diffusion
    if view is None:
        raise ValueError("this checkpoint has no diffusion view that could have a draft vocabulary")
    checkpoint.decoder.set_view(replace(view, draft_vocabulary=tokens))


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
    generation = {"eos_token_id": sorted(checkpoint.end_token_ids), **checkpoint.sampling}
    save_json(directory / "generation_config.json", generation)
    checkpoint.tokenizer.save_pretrained(directory)


def export_adapter(checkpoint: Checkpoint, directory: Path, provenance: dict[str, Any], *, int8: bool = False) -> None:
    """Write diffusion view and draft head of an unprepared checkpoint as an adapter.

    Raises ValueError and OSError as above.
    """
    decoder = checkpoint.decoder
    if decoder.diffusion is None:
        raise ValueError("this checkpoint has no diffusion view to save")
    rank = low_rank.rank_of(decoder)
    config = adapters.AdapterConfig(
        checkpoint.backbone, adapters.shapes_of(decoder.config), decoder.diffusion, provenance, rank=rank
    )
    weights = tensors(decoder, "diffusion", factors=rank is not None)
    adapters.save(directory, config, weights, decoder.draft_head, int8=int8)
