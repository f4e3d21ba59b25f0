"""The file of a draft head, beside the weights of the view that it was trained for.

`draft_head.safetensors` is in the directory of an adapter or of a published checkpoint. The field `draft_head` of its
config names its format, its size and the sha256 of the file. Without the field there is no head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from orthrus.checkpoint.tensors import SafetensorFiles, refuse_non_finite
from orthrus.checkpoint.validation import Field, check, refuse
from orthrus.file_cache import save_bytes
from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import UNIT_MULTIPLE, DraftHead

FILE, FIELD = "draft_head.safetensors", "draft_head"
FORMAT = 1
FIELDS = {
    "format": Field(int, 1, 2**31, required=True),
    "units": Field(int, UNIT_MULTIPLE, 2**16, required=True),
    "sha256": Field(str, required=True),
}


@dataclass(frozen=True)
class HeadDescription:
    """The field `draft_head` of a config: the format, the units of the MLP, and the sha256 of the file."""

    format: int
    units: int
    sha256: str


def describe(where: object, content: dict[str, Any]) -> HeadDescription | None:
    """The field of a config; None where there is none, or where it is of a later format, which this version ignores.

    Raises ValueError naming the field that is wrong.
    """
    own = content.get(FIELD)
    if own is None:
        return None
    if not isinstance(own, dict):
        refuse(where, FIELD, own, "an object")
    check(where, own, FIELDS, f"{FIELD}.")
    if own["units"] % UNIT_MULTIPLE:
        refuse(where, f"{FIELD}.units", own["units"], f"a multiple of {UNIT_MULTIPLE}")
    return HeadDescription(*(own[name] for name in FIELDS)) if own["format"] == FORMAT else None


def encode(head: DraftHead | None) -> tuple[dict[str, Any], dict[str, Callable[[Path], None]]]:
    """What a config and a directory need to hold a head: its field, and its file for `write_atomically`. Both are empty
    where there is none. Matrices are stored in bfloat16."""
    if head is None:
        return {}, {}
    kinds = {1: torch.float32, 2: torch.bfloat16}
    tensors = {name: p.detach().cpu().to(kinds[p.ndim]).contiguous() for name, p in head.named_parameters()}
    data = save(tensors, {"format": "pt"})
    described = HeadDescription(FORMAT, head.units, hashlib.sha256(data).hexdigest())
    return {FIELD: asdict(described)}, {FILE: lambda path: save_bytes(path, data)}


def read(directory: Path, described: HeadDescription, decoder: Decoder) -> None:
    """Fill the draft head of a decoder. Raises ValueError where the file is missing, damaged or another one."""
    head, path = decoder.draft_head, directory / FILE
    assert head is not None
    if not path.is_file():
        raise ValueError(f"{directory}: {FILE} is missing, which the config names")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != described.sha256:
        raise ValueError(f"{path}: its sha256 is {actual}, the config names {described.sha256[:64]}; fetch both again")
    files = SafetensorFiles(path)
    for name, parameter in head.named_parameters():
        if files.shape(name) != tuple(parameter.shape):
            raise ValueError(f"{path}: tensor {name} has shape {list(files.shape(name))}, not {list(parameter.shape)}")
        tensor = files.tensor(name)
        refuse_non_finite(tensor, f"{path}: tensor {name}")
        with torch.no_grad():
            parameter.copy_(tensor)
