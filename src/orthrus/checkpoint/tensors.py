"""Named tensors on disk, read one at a time: safetensors, whole or sharded. Never pickle.

Every error names the file and the tensor. `digest` is the identity of a backbone: the sha256 over its canonical source
tensors as stored, before any cast, fusion or quantisation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from orthrus.checkpoint.derived import cached_digest
from orthrus.model.blocks import Blocks

DIFFUSION_MARK = "_diff."


class TensorFile(Protocol):
    """Tensors by their Hugging Face names."""

    path: Path

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        ...

    def blocks(self, name: str) -> Blocks | None:
        """The same as the file holds it, where that is in fewer bits."""
        ...

    def digest(self, *, tied_head: bool) -> str:
        """The identity of the backbone."""
        ...


class SafetensorFiles:
    """The safetensors of a directory (one file, or shards under an index), or one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._homes: dict[str, Path] = {}
        for file in [path] if path.is_file() else _shards(path):
            try:
                with safe_open(file, "pt") as opened:
                    self._homes.update(dict.fromkeys(opened.keys(), file))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file}: cannot be read as safetensors ({error}); fetch the file again") from error

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._homes)

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored. Raises ValueError where it is missing or damaged."""
        if name not in self._homes:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        try:
            with safe_open(self._homes[name], "pt") as opened:
                return opened.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{self._homes[name]}: tensor {name} cannot be read ({error})") from error

    def blocks(self, name: str) -> None:
        """None: no such files are read."""
        del name

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the backbone's tensors (cached by path, size and time)."""
        return cached_digest(sorted(set(self._homes.values())), lambda: self._compute_digest(tied_head))

    def _compute_digest(self, tied_head: bool) -> str:
        kept = (n for n in self.names if DIFFUSION_MARK not in n and not (tied_head and n == "lm_head.weight"))

        def parts(name: str) -> tuple[str, memoryview]:
            tensor = self.tensor(name).contiguous()
            return f"{tensor.dtype}{tuple(tensor.shape)}", tensor.view(torch.uint8).numpy().reshape(-1).data

        return digest_of(kept, parts)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file; a full disk is an OSError, as for any other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def _shards(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json; only safetensors are read"
        )
    try:
        shards = sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: not a safetensors index ({error!r})") from error
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard}: the index names this shard, but it is missing")
    return shards


def digest_of(names: Iterable[str], parts: Callable[[str], tuple[str, memoryview]]) -> str:
    """The sha256 over tensors in the order of their names: each a header and its bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        header, data = parts(name)
        digest.update(f"{name} {header}\n".encode())
        digest.update(data)
    return digest.hexdigest()
