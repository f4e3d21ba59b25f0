"""The reference implementation of attention in trees: the keys of one path after another, in order of position.

The keys that a row of a tree attends to behind the cached ones are those of its ancestors, which other rows may lie
between. Here they are copied to where they would be in a chain, so that kernels that take a mask compute the rows of
that path: with the bits of plain decoding, as the keys are the same at the same positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.batch import ForwardBatch, ViewRows
from orthrus.config import PAGE


@dataclass(frozen=True)
class Tail:
    """One path per sequence behind its cached keys: the slots of its keys, and the slots that a chain has there."""

    sources: Tensor
    targets: Tensor


def tails_of(rows: ViewRows, batch: ForwardBatch) -> list[Tail]:
    """The tails that attention needs one after another: the n-th paths of all sequences, or those of their n-th blocks.
    None at all for chains."""
    if not rows.row_paths:
        return []
    paths: list[list[int]] = [[] for _ in batch.block_tables]
    for segment in rows.segments:
        paths[segment.sequence] += sorted({*rows.row_paths[segment.first_row :][: segment.rows]})
    return [
        _tail([(sequence, own[n]) for sequence, own in enumerate(paths) if n < len(own)], batch)
        for n in range(max(len(own) for own in paths))
    ]


def _tail(paths: list[tuple[int, int]], batch: ForwardBatch) -> Tail:
    """The tail of some paths, each with its sequence."""
    sources, targets = [], []
    for sequence, path in paths:
        start, *places = batch.path_tables[path] if path >= 0 else [0]
        pages = batch.block_tables[sequence]
        for position, place in enumerate(places, start):
            if position != place:
                sources.append(_slot(pages, place))
                targets.append(_slot(pages, position))
    device = batch.cache.keys.device
    return Tail(*(torch.tensor(own, dtype=torch.int64, device=device) for own in (sources, targets)))


def _slot(pages: list[int], place: int) -> int:
    return pages[place // PAGE] * PAGE + place % PAGE


@contextmanager
def in_order(tail: Tail, *cache_GSE: Tensor) -> Iterator[None]:
    """Keep the keys and values of a tail where a chain has them. What was there is put back in the end."""
    replaced = [stored[:, tail.targets] for stored in cache_GSE]
    for stored in cache_GSE:
        stored[:, tail.targets] = stored[:, tail.sources]
    try:
        yield
    finally:
        for stored, own in zip(cache_GSE, replaced, strict=True):
            stored[:, tail.targets] = own
