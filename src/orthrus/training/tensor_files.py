"""Tensors on disk, memory-mapped: a file per tensor, in a directory that names what they were computed from.

The parts that are done are marked in a file of their own, once their values are on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthrus.file_cache import save_json, write_atomically

DONE = "done"


class TensorFiles:
    """The tensors of `layout`, each a shape and a type, and the marks of `parts` parts.

    content: the name of the file that describes them. Raises ValueError, with the `remedy`, where the directory holds
    others or the disk has too little room.
    """

    def __init__(
        self, directory: Path, content: tuple[str, dict[str, Any]], layout: dict[str, tuple[torch.Size, torch.dtype]],
        parts: int, remedy: str,
    ) -> None:  # fmt: skip
        self.directory = directory
        self.bytes = sum(shape.numel() * dtype.itemsize for shape, dtype in layout.values())
        self._claim(*content, remedy)
        self.maps = {name: self._map(name, *kind) for name, kind in layout.items()}
        self._done = self._map(DONE, torch.Size((parts,)), torch.uint8)

    def is_done(self, part: int) -> bool:
        """Whether the values of a part are on disk."""
        return bool(self._done[part])

    def mark(self, parts: list[int]) -> None:
        """Say that the values of some parts, which are in `maps`, are complete."""
        for name in self.maps:
            self._sync(name)
        self._done[parts] = 1
        self._sync(DONE)

    def _claim(self, name: str, content: dict[str, Any], remedy: str) -> None:
        """Name the content of an empty directory, or check that it is this one."""
        path = self.directory / name
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(content)):
                raise ValueError(
                    f"{self.directory} holds rows of another view, other texts or other settings: delete it"
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if self.bytes > free:
            raise ValueError(
                f"{self.directory} would take {self.bytes / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left:"
                f" {remedy}"
            )
        write_atomically(self.directory, {name: lambda staged: save_json(staged, content)})

    def _map(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A file as a tensor; a new file is zero. Its room is reserved, since a full disk would end a process that
        writes to a map."""
        path, size = self.directory / name, shape.numel()
        with path.open("ab") as file:
            file.truncate(size * dtype.itemsize)
            if size and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    def _sync(self, name: str) -> None:
        with (self.directory / name).open("rb+") as file:
            os.fsync(file.fileno())
