"""Documents packed into texts, and the roots chosen in them: a pure function of the seed and the index of the text.

So every process can build every text, and a resumed run trains on the same texts as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right

import torch
from torch import Tensor

from orthrus.training.anchors import choose
from orthrus.training.blocks import Blocks
from orthrus.training.config import TrainConfig
from orthrus.training.data import Document


class Packing:
    """The infinite sequence of packed texts of a corpus; every epoch shuffles the documents differently."""

    def __init__(self, documents: list[Document], config: TrainConfig) -> None:
        self._documents, self._config = documents, config
        self._epochs: list[list[list[int]]] = []
        self._ends: list[int] = []

    def documents(self, index: int) -> list[Document]:
        """The documents of the text with that index, counted from 0 over all epochs."""
        return [self._documents[n] for n in self.numbers(index)]

    def numbers(self, index: int) -> list[int]:
        """Their numbers among the documents of the corpus."""
        while not self._ends or self._ends[-1] <= index:
            self._epochs.append(self._pack(len(self._epochs)))
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self._epochs[-1]))
        epoch = bisect_right(self._ends, index)
        first = self._ends[epoch - 1] if epoch else 0
        return self._epochs[epoch][index - first]

    def blocks(self, index: int) -> Blocks:
        """The packed text with that index, and its roots."""
        config, starts, spans = self._config, [], []
        tokens: list[int] = []
        for document in self.documents(index):
            start = len(tokens)
            starts.append(start)
            tokens += document.tokens
            spans += [(a + start, b + start) for a, b in document.spans]
        generator = torch.Generator().manual_seed(_seed(config.seed, "roots", index))
        roots, ends = choose(spans, config.roots, generator)
        return Blocks(torch.tensor(tokens), tuple(starts), roots, ends, config.block_size, config.trained_rows)

    def texts_per_epoch(self) -> int:
        """The number of packed texts in the first epoch; other epochs may differ by a few."""
        self.documents(0)
        return len(self._epochs[0])

    def blocks_per_epoch(self) -> int:
        """The number of blocks in the first epoch."""
        return sum(len(self.blocks(n).roots_S) for n in range(self.texts_per_epoch()))

    def _pack(self, epoch: int) -> list[list[int]]:
        """Distribute shuffled documents over texts: each goes into the current text if it fits, otherwise a new one."""
        order = list(range(len(self._documents)))
        random.Random(_seed(self._config.seed, "order", epoch)).shuffle(order)
        texts: list[list[int]] = [[]]
        free = self._config.sequence_length
        for n in order:
            length = len(self._documents[n].tokens)
            if length > free:
                texts.append([])
                free = self._config.sequence_length
            texts[-1].append(n)
            free -= length
        return texts


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch takes `count` things."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, "rows", epoch)))


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
