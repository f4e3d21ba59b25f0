"""The vectors of tokens as C reads them: see `c/embedding.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.backends.native.structs import EmbeddingTable
from orthrus.model.embedding import Embedding, StoredEmbedding
from orthrus.quantization import TYPES


def table_of(embedding: Embedding, hidden: int, dtype: torch.dtype) -> EmbeddingTable:
    """The table of vectors of `hidden` numbers in `dtype`; valid while the embedding stays where it is."""
    rows: Tensor = embedding.stored.raw if isinstance(embedding, StoredEmbedding) else embedding.weight
    kind = 1 + TYPES.index(embedding.stored.type) if isinstance(embedding, StoredEmbedding) else 0
    assert rows.is_contiguous() and embedding.dtype == dtype
    return EmbeddingTable(rows.data_ptr(), hidden, rows[0].nbytes, kind)
