"""Adapters: the trained diffusion weights alone, with the identity of the backbone they were trained on.

An adapter is a directory with `adapter.safetensors` (published tensor names, `...q_proj_diff.weight`) and
`adapter_config.json`. A low-rank view, which has a `rank`, is stored as the factors of `checkpoint.low_rank`. Matrices
may be stored in int8 with one scale per output row, of factors one per column of `up` and row of `down`, in a tensor
`NAME.scale`; drafts do not need more precision. A draft head, if there is one, is in a file of its own: see
`checkpoint.draft_head`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthrus.checkpoint import draft_head, low_rank, published
from orthrus.checkpoint.draft_head import HeadDescription
from orthrus.checkpoint.foreign import refuse_lora
from orthrus.checkpoint.tensors import SafetensorFiles, refuse_non_finite, save_tensors
from orthrus.checkpoint.validation import BACKBONE, DIFFUSION, Field, check, read_json, refuse, short_repr
from orthrus.config import DiffusionConfig
from orthrus.decoder_config import DecoderConfig
from orthrus.file_cache import save_json, write_atomically
from orthrus.model.draft_head import DraftHead

SCALE, INT8 = ".scale", "I8"
WEIGHTS, CONFIG = "adapter.safetensors", "adapter_config.json"
FORMAT = 1
SHAPES = {
    "family": Field(str, required=True),
    "vocab_size": BACKBONE["vocab_size"],
    "hidden_size": BACKBONE["hidden_size"],
    "layers": BACKBONE["num_hidden_layers"],
    "heads": BACKBONE["num_attention_heads"],
    "kv_heads": replace(BACKBONE["num_key_value_heads"], required=True),
    "head_dim": replace(BACKBONE["head_dim"], required=True),
}
"""The shapes that an adapter and its backbone must share, under the names of `DecoderConfig`."""

IDENTITY = {
    "id": Field(str, required=True),
    "revision": Field(str),
    "sha256": Field(str, required=True),
    "tokenizer_sha256": Field(str, required=True),
}
FIELDS = {
    "backbone": Field(dict, required=True),
    "shapes": Field(dict, required=True),
    "provenance": Field(dict, required=True),
    **DIFFUSION,
    "trained_rows": replace(DIFFUSION["trained_rows"], required=True),
    "rank": Field(int, 1, 2**16),
}


@dataclass(frozen=True)
class BackboneIdentity:
    """The identity of a backbone: its origin, and the hashes of its tensors and of its vocabulary."""

    id: str
    revision: str | None
    sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class AdapterConfig:
    """The content of `adapter_config.json`, read before the weights. rank: that of a low-rank view."""

    backbone: BackboneIdentity
    shapes: dict[str, Any]
    diffusion: DiffusionConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    draft_head: HeadDescription | None = None
    rank: int | None = None


def shapes_of(config: DecoderConfig) -> dict[str, Any]:
    """The shapes an adapter must share with its backbone."""
    return {name: getattr(config, name) for name in SHAPES}


def save(
    directory: Path, config: AdapterConfig, weights: dict[str, Tensor], head: DraftHead | None, *, int8: bool = False
) -> None:
    """Write an adapter atomically, with its draft head if there is one. Raises OSError and leaves an older adapter in
    the directory intact."""
    if int8:
        weights = {stored: t for name, tensor in weights.items() for stored, t in _quantised(name, tensor)}
    field, files = draft_head.encode(head)
    content = {
        "format": FORMAT,
        "backbone": asdict(config.backbone),
        "shapes": config.shapes,
        **published.diffusion_fields(config.diffusion),
        **({} if config.rank is None else {"rank": config.rank}),
        **field,
        "provenance": config.provenance,
    }
    write_atomically(
        directory,
        {
            WEIGHTS: lambda path: save_tensors(path, weights, {}),
            **files,
            CONFIG: lambda path: save_json(path, content),
        },
    )


def read_config(directory: Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises ValueError where the directory has no adapter or a damaged one."""
    path = directory / CONFIG
    if not path.exists():
        raise ValueError(f"{directory}: no adapter here ({CONFIG} is missing)")
    content = read_json(path)
    refuse_lora(directory, content)
    version = content.get("format")
    if type(version) is not int or version != FORMAT:
        refuse(path, "format", version, f"{FORMAT}, the format that this version of Orthrus reads")
    check(path, content, FIELDS)
    check(path, content["backbone"], IDENTITY, "backbone.")
    check(path, content["shapes"], SHAPES, "shapes.")
    for name, value in content["shapes"].items():
        if name not in SHAPES:
            refuse(path, f"shapes.{short_repr(name)}", value, f"only {', '.join(SHAPES)}")
    rank, shapes = content.get("rank"), content["shapes"]
    limit = min(shapes["hidden_size"], shapes["heads"] * shapes["head_dim"])
    if rank is not None and rank > limit:
        refuse(path, "rank", rank, f"at most {limit}, the rank of full projections")
    identity = BackboneIdentity(**{name: content["backbone"].get(name) for name in IDENTITY})
    diffusion = published.diffusion_config(content, path, content["shapes"]["vocab_size"])
    head = draft_head.describe(path, content)
    return AdapterConfig(identity, shapes, diffusion, content["provenance"], head, rank)


class AdapterFile(SafetensorFiles):
    """The weights of an adapter; int8 weights are dequantised on reading."""

    @property
    def names(self) -> list[str]:
        """The names of all weights, without the scales of int8 weights."""
        scales = {name + SCALE for name, entry in self.entries.items() if entry.dtype == INT8}
        return [name for name in super().names if name not in scales]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one weight. Raises ValueError where it or its scale is missing or has a wrong type or shape."""
        entry = self.entry(name)
        if entry.dtype != INT8:
            return super().shape(name)
        scale = super().shape(name + SCALE)
        columns = name.endswith(low_rank.UP)
        if scale != (entry.shape[1:] if columns else entry.shape[:1]):
            expected = f"expected one scale per {'column' if columns else 'row'} of {list(entry.shape)}"
            raise ValueError(f"{self.path}: tensor {name}{SCALE} has shape {list(scale)}; {expected}")
        return entry.shape

    def tensor(self, name: str) -> Tensor:
        """One weight, dequantised. Raises ValueError where it or its scale is missing or damaged."""
        stored = super().tensor(name)
        if stored.dtype != torch.int8:
            return stored
        self.shape(name)
        scale = super().tensor(name + SCALE)
        refuse_non_finite(scale, f"{self.path}: tensor {name}{SCALE}")
        return stored.float() * (scale if name.endswith(low_rank.UP) else scale.reshape(-1, *[1] * (stored.ndim - 1)))


def _quantised(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if tensor.ndim != 2:
        yield name, tensor
        return
    scale = tensor.float().abs().amax(dim=0 if name.endswith(low_rank.UP) else 1, keepdim=True).clamp(min=1e-12) / 127
    yield name, (tensor.float() / scale).round().to(torch.int8)
    yield name + SCALE, scale.flatten()


def weights(directory: Path) -> AdapterFile:
    """The weights of an adapter. Raises ValueError where they are missing or damaged."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{directory}: {WEIGHTS} is missing")
    return AdapterFile(path)


def check_backbone(
    adapter: AdapterConfig, config: DecoderConfig, backbone: BackboneIdentity, *, allow_other: bool
) -> str | None:
    """Check that an adapter was trained on this backbone.

    Returns None where it was, and a warning where only the weights differ and `allow_other` is set: the output stays
    exact, only acceptance may fall. Raises ValueError otherwise.
    """
    shapes, origin = shapes_of(config), adapter.backbone.id[:200]
    if adapter.shapes != shapes:
        pairs = ", ".join(
            f"{k} {str(adapter.shapes.get(k))[:80]} != {v}" for k, v in shapes.items() if adapter.shapes.get(k) != v
        )
        raise ValueError(f"the adapter was trained on a backbone with other shapes ({origin}): {pairs}")
    if adapter.backbone.tokenizer_sha256 != backbone.tokenizer_sha256:
        raise ValueError(f"the adapter was trained with another tokenizer (that of {origin})")
    if adapter.backbone.sha256 == backbone.sha256:
        return None
    difference = (
        "the adapter was trained on other backbone weights:\n"
        f"  adapter's backbone {adapter.backbone.sha256[:64]} ({origin})\n"
        f"  this backbone      {backbone.sha256} ({backbone.id})"
    )
    if not allow_other:
        raise ValueError(f"{difference}\nUse --allow-other-backbone (allow_other_backbone=True) to load it anyway.")
    return f"{difference}\nThe output stays exact; acceptance may be lower than on the backbone of the adapter."
