"""Memory for packed weights, in huge pages where the system has them: a pass reads it all, and pages cost look-ups."""

from __future__ import annotations

import mmap
from threading import Lock

import torch
from torch import Tensor

CHUNK = 2**26
ALIGNMENT = 64
_lock = Lock()
_open: list[tuple[mmap.mmap, int]] = []
"""The chunk that is being filled, and how far."""


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy of a CPU tensor, right after the one before it; freed with the last tensor of its chunk."""
    with _lock:
        memory, used = _open.pop() if _open else (_chunk(0), 0)
        if used + tensor.nbytes > len(memory):
            memory, used = _chunk(tensor.nbytes), 0
        _open.append((memory, -(-(used + tensor.nbytes) // ALIGNMENT) * ALIGNMENT))
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=used).view(tensor.shape)
    return copy.copy_(tensor)


def _chunk(least: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(CHUNK, least))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
