"""Documents packed into texts, and roots chosen in them: a pure function of the seed and the text's number.

So any process can make any text, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right

import torch

from orthrus.config import TrainConfig
from orthrus.training.anchors import choose
from orthrus.training.blocks import Blocks
from orthrus.training.data import Document


class Packing:
    """The endless row of packed texts over a corpus, epoch after epoch, each epoch in an order of its own."""

    def __init__(self, documents: list[Document], config: TrainConfig) -> None:
        self._documents, self._config = documents, config
        self._epochs: list[list[list[int]]] = []
        self._ends: list[int] = []

    def documents(self, number: int) -> list[Document]:
        """The documents of the text of that number, counted from 0 over all epochs."""
        while not self._ends or self._ends[-1] <= number:
            self._epochs.append(self._pack(len(self._epochs)))
            self._ends.append((self._ends[-1] if self._ends else 0) + len(self._epochs[-1]))
        epoch = bisect_right(self._ends, number)
        first = self._ends[epoch - 1] if epoch else 0
        return [self._documents[n] for n in self._epochs[epoch][number - first]]

    def blocks(self, number: int) -> Blocks:
        """The packed text of that number with its roots."""
        config, starts, spans = self._config, [], []
        tokens: list[int] = []
        for document in self.documents(number):
            start = len(tokens)
            starts.append(start)
            tokens += document.tokens
            spans += [(a + start, b + start) for a, b in document.spans]
        generator = torch.Generator().manual_seed(_seed(config.seed, "roots", number))
        roots, ends = choose(spans, config.roots, generator)
        return Blocks(torch.tensor(tokens), tuple(starts), roots, ends, config.block_size, config.trained_rows)

    def texts_per_epoch(self) -> int:
        """Packed texts in the first epoch; the others differ by a few."""
        self.documents(0)
        return len(self._epochs[0])

    def _pack(self, epoch: int) -> list[list[int]]:
        """Fill texts with documents in a shuffled order, each into the text at hand or else into the next."""
        order = list(range(len(self._documents)))
        random.Random(_seed(self._config.seed, "order", epoch)).shuffle(order)
        texts: list[list[int]] = [[]]
        room = self._config.sequence_length
        for n in order:
            length = len(self._documents[n].tokens)
            if length > room:
                texts.append([])
                room = self._config.sequence_length
            texts[-1].append(n)
            room -= length
        return texts


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
