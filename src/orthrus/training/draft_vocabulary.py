"""The choice of a draft vocabulary: the tokens that answers hold most often.

Tokens of answers come first, by their number; then those of prompts, which answers repeat; then all others by their id,
since tokenizers number frequent tokens first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orthrus.checkpoint.hub import Checkpoint
from orthrus.config import refuse_vocabulary_size
from orthrus.training import data
from orthrus.training.config import TrainConfig
from orthrus.training.data import Document

LONGEST = 2**20
"""Tokens of a record that are counted."""


@dataclass(frozen=True)
class DraftVocabulary:
    """The tokens, ascending, and which share of the tokens of the answers they are."""

    tokens: tuple[int, ...]
    coverage: float


def choose(documents: Sequence[Document], size: int, vocab_size: int) -> DraftVocabulary:
    """The `size` most frequent tokens. Raises ValueError for a size that is none of a draft vocabulary."""
    refuse_vocabulary_size(size)
    if size > vocab_size:
        raise ValueError(f"a draft vocabulary of {size} tokens exceeds the {vocab_size} tokens of the model")
    answers, texts = np.zeros(vocab_size, np.int64), np.zeros(vocab_size, np.int64)
    for document in documents:
        tokens = np.array(document.tokens)
        texts += np.bincount(tokens, minlength=vocab_size)
        for start, stop in document.spans:
            answers += np.bincount(tokens[start:stop], minlength=vocab_size)
    chosen = np.sort(np.lexsort((np.arange(vocab_size), -texts, -answers))[:size])
    return DraftVocabulary(tuple(chosen.tolist()), float(answers[chosen].sum() / max(1, answers.sum())))


def of_data(paths: list[Path], checkpoint: Checkpoint, size: int) -> DraftVocabulary:
    """The same from files or directories of answers, as training reads them. Raises ValueError as `data.load` does."""
    reading = TrainConfig(sequence_length=LONGEST, held_out=1)
    corpus = data.load(paths, checkpoint.tokenizer, checkpoint.end_token_ids, reading, checkpoint.backbone)
    return choose([*corpus.documents, *corpus.held_out], size, checkpoint.decoder.config.vocab_size)
