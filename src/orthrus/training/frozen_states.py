"""What the frozen AR view computes for each document, kept on disk: its keys and values and its final hidden states.

They are the same at every epoch, so a step after the first epoch runs the diffusion view alone. The first epoch, in
which each document occurs once, computes them text by text. A killed run finds those that are complete.

Shapes: T tokens of a text, L layers; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.training.blocks import Blocks
from orthrus.training.data import Corpus
from orthrus.training.packing import Packing
from orthrus.training.step import FrozenPass, frozen_pass
from orthrus.training.tensor_files import TensorFiles

CONTENT = "frozen.json"
STATES = "states"


class FrozenStates:
    """The frozen passes of the texts of a packing of the documents of a corpus.

    digest: that of the frozen weights. Raises ValueError where the directory holds others or the disk lacks room.
    """

    def __init__(self, decoder: Decoder, corpus: Corpus, packing: Packing, *, digest: str, directory: Path) -> None:
        config = decoder.config
        self._decoder, self._packing = decoder, packing
        lengths = [len(document.tokens) for document in corpus.documents]
        self._places = list(pairwise(accumulate([0, *lengths])))
        self._cache_shape = 2 * config.layers, config.kv_heads, config.head_dim
        width = config.hidden_size + 2 * config.layers * config.kv_heads * config.head_dim
        described = {"frozen": digest, "data": corpus.digest, "dtype": str(decoder.dtype)}
        layout = {STATES: (torch.Size((sum(lengths), width)), decoder.dtype)}
        remedy = "leave --keep-frozen-states out"
        self._files = TensorFiles(directory, (CONTENT, described), layout, len(lengths), remedy)

    @property
    def bytes(self) -> int:
        """The size of all states on disk."""
        return self._files.bytes

    def of(self, number: int, blocks: Blocks) -> FrozenPass:
        """The frozen pass of the text with this number, whose blocks are given: read, or computed and kept."""
        documents, device = self._packing.numbers(number), self._decoder.device
        stored = [self._files.maps[STATES][slice(*self._places[n])] for n in documents]
        if all(self._files.is_done(n) for n in documents):
            return self._unpacked(torch.cat(stored).to(device))
        computed = frozen_pass(self._decoder, blocks.to(device))
        for kept, values in zip(stored, self._packed(computed).split([len(own) for own in stored]), strict=True):
            kept.copy_(values)
        self._files.mark(documents)
        return computed

    def _packed(self, computed: FrozenPass) -> Tensor:
        """Hidden states, keys and values of each token in one row [T, ..]."""
        caches = [part.flatten(1) for pair in computed.memory for part in pair]
        return torch.cat((computed.teacher_TD, *caches), dim=1)

    def _unpacked(self, packed: Tensor) -> FrozenPass:
        hidden = self._decoder.config.hidden_size
        caches = packed[:, hidden:].unflatten(1, self._cache_shape).transpose(0, 1).contiguous().unbind()
        return FrozenPass(packed[:, :hidden].contiguous(), list(zip(caches[::2], caches[1::2], strict=True)))
