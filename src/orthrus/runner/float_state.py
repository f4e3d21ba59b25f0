"""The floating-point state of the calling thread: passes run with denormals kept, whatever the caller has set.

Flush-to-zero holds in the thread that set it only, so rows that other threads compute would have other bits. The C
kernels set the state of their own threads (`c/thread_state.h`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLEST_NORMAL, SMALLEST_DENORMAL = sys.float_info.min, 5e-324


def flushes_denormals() -> bool:
    """Whether this thread takes denormals for zero, as operands or as results."""
    half, one = 0.5, 1.0
    return SMALLEST_NORMAL * half == 0.0 or SMALLEST_DENORMAL * one == 0.0


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Keep denormals inside the block; the caller's setting comes back after it."""
    flushed = flushes_denormals()
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)
