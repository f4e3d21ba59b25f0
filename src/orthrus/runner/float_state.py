"""The floating-point state of the calling thread: passes run without flush-to-zero, whatever the caller has set.

Flush-to-zero applies only to the thread that set it, so rows computed by other threads would have other bits. The C
kernels set the state of their own threads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLEST_NORMAL, SMALLEST_DENORMAL = sys.float_info.min, 5e-324


def flushes_denormals() -> bool:
    """Whether this thread treats denormals as zero, as operands or as results."""
    half, one = 0.5, 1.0
    return SMALLEST_NORMAL * half == 0.0 or SMALLEST_DENORMAL * one == 0.0


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Disable flush-to-zero inside the `with` block, and restore the caller's setting after it."""
    flushed = flushes_denormals()
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)
