"""Memory for packed weights in huge pages: a pass reads all of it, and small pages would cost TLB misses."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

CHUNK_BYTES = 2**26
ALIGNMENT = 64


class HugePageArena:
    """Allocates tensors one after another from chunks of `CHUNK_BYTES`, in huge pages where the system has them.

    A chunk is freed with the last tensor in it. Safe for many threads.
    """

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0
        self._lock = Lock()

    def copy_to_huge_pages(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a CPU tensor."""
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor whose values are not set."""
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        with self._lock:
            chunk, start = self._chunk, self._used
            if chunk is None or start + size > len(chunk):
                self._chunk = chunk = _new_chunk(size)
                start = 0
            self._used = -(-(start + size) // ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(chunk, dtype=dtype, count=count, offset=start).view(shape)


def _new_chunk(min_bytes: int) -> mmap.mmap:
    chunk = mmap.mmap(-1, max(CHUNK_BYTES, min_bytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
