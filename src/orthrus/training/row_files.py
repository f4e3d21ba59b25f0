"""Rows of blocks on disk, memory-mapped: one file per field, filled text by text, in any order and by any process.

A text counts as done once its rows are on disk, so a run that is killed goes on with the next one. The directory names
what its rows were computed from, and is refused for anything else.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthrus.training.rows import HeadRows
from orthrus.training.tensor_files import TensorFiles

CONTENT = "rows.json"


class RowFiles:
    """The rows of some texts. `row_types` are rows of no blocks, with the shapes and types of all.

    Raises ValueError where the directory holds rows of something else or the disk has too little room.
    """

    def __init__(
        self, directory: Path, description: dict[str, Any], blocks_per_text: list[int], row_types: HeadRows
    ) -> None:
        self._texts = list(pairwise(accumulate([0, *blocks_per_text])))
        self.blocks = sum(blocks_per_text)
        tensors = {field.name: getattr(row_types, field.name) for field in fields(HeadRows)}
        layout = {name: [str(tensor.dtype), *tensor.shape[1:]] for name, tensor in tensors.items()}
        content = {"description": description, "blocks": blocks_per_text, "layout": layout}
        kinds = {name: (torch.Size((self.blocks, *tensor.shape[1:])), tensor.dtype) for name, tensor in tensors.items()}
        self._files = TensorFiles(directory, (CONTENT, content), kinds, len(self._texts), "lower --roots")
        self.bytes = self._files.bytes

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self._texts)

    def is_done(self, text: int) -> bool:
        """Whether the rows of a text are on disk."""
        return self._files.is_done(text)

    def write(self, text: int, rows: HeadRows) -> None:
        """Keep the rows of a text."""
        start, stop = self._texts[text]
        for name, kept in self._files.maps.items():
            kept[start:stop] = getattr(rows, name)
        self._files.mark([text])

    def read(self, blocks_S: Tensor) -> HeadRows:
        """Some blocks, numbered over all texts."""
        return HeadRows(*(kept[blocks_S] for kept in self._files.maps.values()))

    def all(self) -> HeadRows:
        """All blocks."""
        return HeadRows(*self._files.maps.values())
