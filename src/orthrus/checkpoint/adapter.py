"""Adapters: the trained diffusion weights alone, with the identity of the backbone they were trained on.

A directory with `adapter.safetensors` (published tensor names, `...q_proj_diff.weight`) and `adapter_config.json`.
Matrices may be stored in int8, each output row with a scale of its own in a tensor `NAME.scale`: a draft needs no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthrus.checkpoint.derived import save_json, write_atomically
from orthrus.checkpoint.tensors import SafetensorFiles, save_tensors
from orthrus.config import DecoderConfig, DiffusionConfig

SCALE = ".scale"
WEIGHTS, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = 1
SHAPE_FIELDS = ("family", "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim")


@dataclass(frozen=True)
class BackboneIdentity:
    """Which backbone: where it came from, and the hashes of its tensors and of its vocabulary."""

    id: str
    revision: str | None
    sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class AdapterConfig:
    """All that must be known of an adapter before its weights are read."""

    backbone: BackboneIdentity
    shapes: dict[str, Any]
    diffusion: DiffusionConfig
    provenance: dict[str, Any] = field(default_factory=dict)


def shapes_of(config: DecoderConfig) -> dict[str, Any]:
    """The shapes an adapter must share with its backbone."""
    return {name: getattr(config, name) for name in SHAPE_FIELDS}


def save(directory: Path, config: AdapterConfig, weights: dict[str, Tensor], *, int8: bool = False) -> None:
    """Write an adapter, all or nothing. Raises OSError with an older adapter in place intact."""
    if int8:
        weights = {stored: t for name, tensor in weights.items() for stored, t in _quantised(name, tensor)}
    content = {
        "format": FORMAT,
        "backbone": asdict(config.backbone),
        "shapes": config.shapes,
        **asdict(config.diffusion),
        "provenance": config.provenance,
    }
    write_atomically(
        directory,
        {
            WEIGHTS: lambda path: save_tensors(path, weights, {}),
            CONFIG: lambda path: save_json(path, content),
        },
    )


def read_config(directory: Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises ValueError where the directory holds no adapter or a damaged one."""
    path = directory / CONFIG
    if not path.is_file():
        raise ValueError(f"{directory}: no adapter here ({CONFIG} is missing)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"{path}: adapter format {content['format']}, this version reads format {FORMAT}")
        return AdapterConfig(
            BackboneIdentity(**content["backbone"]),
            content["shapes"],
            DiffusionConfig(content["block_size"], content["mask_token_id"], content["trained_rows"]),
            content["provenance"],
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an adapter config ({error!r})") from error


class AdapterFile(SafetensorFiles):
    """The weights of an adapter; int8 rows come back multiplied by their scales."""

    @property
    def names(self) -> list[str]:
        """All weights, scales left out."""
        return [name for name in super().names if not name.endswith(SCALE)]

    def tensor(self, name: str) -> Tensor:
        """One weight. Raises ValueError where it, or its scale, is missing or damaged."""
        stored = super().tensor(name)
        return stored if stored.dtype != torch.int8 else stored.float() * super().tensor(name + SCALE)[:, None]


def _quantised(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if tensor.ndim != 2:
        yield name, tensor
        return
    scale = tensor.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    yield name, (tensor.float() / scale[:, None]).round().to(torch.int8)
    yield name + SCALE, scale


def weights(directory: Path) -> AdapterFile:
    """The weights of an adapter. Raises ValueError where they are missing or damaged."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{directory}: {WEIGHTS} is missing")
    return AdapterFile(path)


def check_backbone(
    adapter: AdapterConfig, config: DecoderConfig, backbone: BackboneIdentity, *, allow_other: bool
) -> str | None:
    """Refuse an adapter that does not belong to this backbone.

    Returns a warning where only the weights differ and `allow_other` was given: the output stays exact, only acceptance
    may fall. Raises ValueError otherwise.
    """
    shapes = shapes_of(config)
    if adapter.shapes != shapes:
        pairs = ", ".join(
            f"{k} {adapter.shapes.get(k)} != {v}" for k, v in shapes.items() if adapter.shapes.get(k) != v
        )
        raise ValueError(f"the adapter was trained on a backbone of other shapes ({adapter.backbone.id}): {pairs}")
    if adapter.backbone.tokenizer_sha256 != backbone.tokenizer_sha256:
        raise ValueError(f"the adapter was trained with another tokenizer (that of {adapter.backbone.id})")
    if adapter.backbone.sha256 == backbone.sha256:
        return None
    difference = (
        "the adapter was trained on other weights:\n"
        f"  adapter's backbone {adapter.backbone.sha256} ({adapter.backbone.id})\n"
        f"  this backbone      {backbone.sha256} ({backbone.id})"
    )
    if not allow_other:
        raise ValueError(
            f"{difference}\nUse --allow-other-backbone (allow_other_backbone=True) to load it all the same."
        )
    return f"{difference}\nThe output stays exact; acceptance may be lower than what the adapter was measured at."
