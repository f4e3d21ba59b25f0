"""Named tensors on disk, read one at a time: safetensors, in one file or sharded. Pickle is never read.

Errors name the file and the tensor. `digest` is the identity of a backbone: the sha256 over its canonical source
tensors as stored, before any cast, fusion or quantisation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from orthrus.checkpoint.validation import as_value_errors, read_json, refuse, short_repr
from orthrus.file_cache import cached_digest
from orthrus.quantization import StoredMatrix

DIFFUSION_MARK = "_diff."
WEIGHTS = ("F64", "F32", "F16", "BF16")
"""The types of weights, under their safetensors names."""


class TensorFile(Protocol):
    """Tensors by their Hugging Face names."""

    path: Path

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor of weights, read from the header."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        ...

    def group_quantized(self, name: str) -> StoredMatrix | None:
        """One matrix as stored in quantised groups; None where it is stored otherwise."""
        ...

    def digest(self, *, tied_head: bool) -> str:
        """The identity of the backbone."""
        ...


@dataclass(frozen=True)
class Entry:
    """One tensor in a header: its file, type and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class SafetensorFiles:
    """A safetensors file, or all of a directory (one file, or shards with an index)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        for file in [path] if path.is_file() else _shards(path):
            for name, entry in _entries(file).items():
                if name in self.entries:
                    both = f"{self.entries[name].file.name} and {file.name}"
                    raise ValueError(f"{path}: tensor {short_repr(name)} is in {both}")
                self.entries[name] = entry

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor. Raises ValueError where it is missing or its type is not one of `WEIGHTS`."""
        entry = self.entry(name)
        if entry.dtype not in WEIGHTS:
            raise ValueError(f"{self.path}: tensor {name} is of type {entry.dtype}; expected {', '.join(WEIGHTS)}")
        return entry.shape

    def entry(self, name: str) -> Entry:
        """The header entry of one tensor. Raises ValueError where it is missing."""
        if name not in self.entries:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        return self.entries[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored. Raises ValueError where it is missing or damaged."""
        file = self.entry(name).file
        with as_value_errors(f"{file}: tensor {name} cannot be read"), safe_open(file, "pt") as opened:
            return opened.get_tensor(name)

    def part(self, name: str, index: int) -> Tensor:
        """One entry of a tensor along its first dimension. Raises ValueError as `tensor` does."""
        file = self.entry(name).file
        with as_value_errors(f"{file}: tensor {name} cannot be read"), safe_open(file, "pt") as opened:
            part: Tensor = opened.get_slice(name)[index]
            return part

    def group_quantized(self, name: str) -> None:
        """None: quantised groups are read from GGUF files only."""
        del name

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the backbone's tensors (cached by the `stamp` of its files)."""
        files = sorted({entry.file for entry in self.entries.values()})
        kind = "digest-tied" if tied_head else "digest"
        return cached_digest(files, lambda: self._compute_digest(tied_head), kind)

    def _compute_digest(self, tied_head: bool) -> str:
        kept = (n for n in self.names if DIFFUSION_MARK not in n and not (tied_head and n == "lm_head.weight"))

        def parts(name: str) -> tuple[str, memoryview]:
            tensor = self.tensor(name).contiguous()
            return f"{tensor.dtype}{tuple(tensor.shape)}", tensor.reshape(-1).view(torch.uint8).numpy().data

        return digest_of(kept, parts)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file. Raises OSError, also where safetensors raises an error of its own."""
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def _entries(file: Path) -> dict[str, Entry]:
    what = f"{file}: cannot be read as safetensors; fetch the file again"
    with as_value_errors(what), safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: Entry(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _shards(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json; only safetensors are read from a"
            " directory, and a .gguf file is given by its path"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        refuse(index, "weight_map", weight_map, "an object of tensor names and file names")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            refuse(index, f"weight_map[{short_repr(name)}]", shard, "a file name without a path")
    shards = [directory / shard for shard in sorted(set(weight_map.values()))]
    for path in shards:
        if not path.is_file():
            raise ValueError(f"{path}: the index names this shard, but it is missing")
    return shards


def _is_plain_name(name: object) -> bool:
    """Whether a name has no path in it. The file itself may be a symlink, as in the cache of the hub."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
        return False
    try:
        return len(os.fsencode(name)) <= 255
    except UnicodeEncodeError:
        return False


def finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass without a copy: `aminmax` returns NaN if any value is NaN."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.aminmax()).isfinite().all())


def refuse_non_finite(tensor: Tensor, what: str) -> None:
    """Raise ValueError where a tensor holds NaN or infinite values."""
    if not finite(tensor):
        raise ValueError(f"{what} holds NaN or infinite values; fetch the file again")


def digest_of(names: Iterable[str], parts: Callable[[str], tuple[str, memoryview]]) -> str:
    """The sha256 over tensors sorted by name; `parts` returns the header and the bytes of one."""
    digest = hashlib.sha256()
    for name in sorted(names):
        header, data = parts(name)
        digest.update(f"{name} {header}\n".encode())
        digest.update(data)
    return digest.hexdigest()
