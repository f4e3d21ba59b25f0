"""The layout of the published Orthrus checkpoints (`OrthrusLM`), read and written without remote code.

A checkpoint holds the tensors of the backbone under their usual names and those of the diffusion view beside them
(`model.layers.N.self_attn.q_proj_diff.weight`); `block_size` and `mask_token_id` are top-level fields of `config.json`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from orthrus.checkpoint import draft_head, draft_vocabulary
from orthrus.checkpoint.tensors import TensorFile, save_tensors
from orthrus.checkpoint.validation import DIFFUSION, Field, check, read_json, refuse
from orthrus.config import DiffusionConfig
from orthrus.file_cache import save_json, write_atomically
from orthrus.model.draft_head import DraftHead

ARCHITECTURE = "OrthrusLM"
CALIBRATION = "inverse_temperatures"
OPTIONAL = (draft_head.FIELD, CALIBRATION, draft_vocabulary.FIELD)
"""Fields that describe a view, and that not every view has."""
INVERSE = Field(float, 0.01, 100.0)


def is_published(content: dict[str, Any], tensors: TensorFile) -> bool:
    """Whether a checkpoint contains a diffusion view, judged by its architecture or by its tensors."""
    return ARCHITECTURE in (content.get("architectures") or ()) or any("q_proj_diff." in name for name in tensors.names)


def diffusion_config(content: dict[str, Any], where: object, vocab_size: int) -> DiffusionConfig:
    """Read block size, mask token, trained rows, which are all except the last in the published models, and calibration
    and draft vocabulary, if there are any.

    Raises ValueError naming the file and the field that is missing or out of range.
    """
    check(where, content, DIFFUSION)
    block, mask = content["block_size"], content["mask_token_id"]
    rows = content.get("trained_rows")
    if block < 2:
        raise ValueError(f"{where}: block_size must be at least 2 (a root and one mask), not {block}")
    if mask >= vocab_size:
        raise ValueError(f"{where}: mask_token_id {mask} is outside the vocabulary of {vocab_size}")
    if rows is not None and rows > block:
        refuse(where, "trained_rows", rows, f"at most block_size, {block}")
    rows = block - 1 if rows is None else rows
    temperatures = _inverse_temperatures(content.get(CALIBRATION), where, rows)
    drafted = draft_vocabulary.decode(content.get(draft_vocabulary.FIELD), where, vocab_size)
    return DiffusionConfig(block, mask, rows, temperatures, drafted)


def diffusion_fields(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The fields of a config from which `diffusion_config` reads."""
    tokens = diffusion.draft_vocabulary
    fields = asdict(replace(diffusion, draft_vocabulary=None))
    fields[draft_vocabulary.FIELD] = None if tokens is None else draft_vocabulary.encode(tokens)
    return {name: value for name, value in fields.items() if value is not None}


def _inverse_temperatures(found: Any, where: object, rows: int) -> tuple[float, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != rows or not all(INVERSE.accepts(value) for value in found):
        refuse(where, CALIBRATION, found, f"a list of {rows} numbers in 0.01..100, one per trained row")
    return tuple(float(value) for value in found)


def backbone_type(content: dict[str, Any]) -> str:
    """The `model_type` of the backbone; published checkpoints may use `orthrus`, which stands for Qwen3."""
    kind = str(content.get("model_type", ""))
    return "qwen3" if kind == "orthrus" else kind


def save(
    directory: Path,
    content: dict[str, Any],
    diffusion: DiffusionConfig,
    tensors: dict[str, Tensor],
    head: DraftHead | None = None,
) -> None:
    """Write backbone and diffusion view, and the draft head if there is one, in the published layout; `content` is the
    backbone's `config.json`.

    Raises OSError and leaves older files intact.
    """
    field, files = draft_head.encode(head)
    config = {
        **{name: value for name, value in content.items() if name not in OPTIONAL},
        "architectures": [ARCHITECTURE],
        **diffusion_fields(diffusion),
        **field,
    }
    write_atomically(
        directory,
        {
            "model.safetensors": lambda path: save_tensors(path, tensors, {}),
            **files,
            "config.json": lambda path: save_json(path, config),
        },
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint directory. Raises ValueError where it is missing or damaged."""
    path = directory / "config.json"
    if not path.exists():
        raise ValueError(f"{directory}: expected a checkpoint, but there is no config.json")
    return read_json(path)
