"""Rows of blocks on disk, memory-mapped: one file per field, filled text by text, in any order and by any process.

A text counts as done once its rows are on disk, so a run that is killed goes on with the next one. The directory names
what its rows were computed from, and is refused for anything else.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthrus.file_cache import save_json, write_atomically
from orthrus.training.rows import HeadRows

CONTENT, DONE = "rows.json", "done"


class RowFiles:
    """The rows of some texts. `row_types` are rows of no blocks, with the shapes and types of all.

    Raises ValueError where the directory holds rows of something else or the disk has too little room.
    """

    def __init__(
        self, directory: Path, description: dict[str, Any], blocks_per_text: list[int], row_types: HeadRows
    ) -> None:
        self.directory = directory
        self._texts = list(pairwise(accumulate([0, *blocks_per_text])))
        self.blocks = sum(blocks_per_text)
        tensors = {field.name: getattr(row_types, field.name) for field in fields(HeadRows)}
        sizes = {name: self.blocks * tensor[0:0].shape[1:].numel() for name, tensor in tensors.items()}
        self.bytes = sum(size * tensors[name].element_size() for name, size in sizes.items())
        layout = {name: [str(tensor.dtype), *tensor.shape[1:]] for name, tensor in tensors.items()}
        self._claim({"description": description, "blocks": blocks_per_text, "layout": layout})
        self._maps = {
            name: self._map(name, (self.blocks, *tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items()
        }
        self._done = self._map(DONE, (len(self._texts),), torch.uint8)

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self._texts)

    def is_done(self, text: int) -> bool:
        """Whether the rows of a text are on disk."""
        return bool(self._done[text])

    def write(self, text: int, rows: HeadRows) -> None:
        """Keep the rows of a text."""
        start, stop = self._texts[text]
        for name, kept in self._maps.items():
            kept[start:stop] = getattr(rows, name)
            self._sync(name)
        self._done[text] = 1
        self._sync(DONE)

    def read(self, blocks_S: Tensor) -> HeadRows:
        """Some blocks, numbered over all texts."""
        return HeadRows(*(kept[blocks_S] for kept in self._maps.values()))

    def all(self) -> HeadRows:
        """All blocks."""
        return HeadRows(*self._maps.values())

    def _claim(self, content: dict[str, Any]) -> None:
        """Name the content of an empty directory, or check that it is this one."""
        path = self.directory / CONTENT
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
                f"the rows of {self.blocks} blocks take {self.bytes / 1e9:.1f} GB, and {self.directory} has"
                f" {free / 1e9:.1f} GB left: lower --roots"
            )
        write_atomically(self.directory, {CONTENT: lambda staged: save_json(staged, content)})

    def _map(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A file as a tensor; a new file is zero. Its room is reserved, since a full disk would end a process that
        writes to a map."""
        path, size = self.directory / name, torch.Size(shape).numel()
        with path.open("ab") as file:
            file.truncate(size * dtype.itemsize)
            if size and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    def _sync(self, name: str) -> None:
        with (self.directory / name).open("rb+") as file:
            os.fsync(file.fileno())
