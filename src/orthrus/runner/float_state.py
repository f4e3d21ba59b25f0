"""The floating-point state of the calling thread: passes run without flush-to-zero, whatever the caller has set.

Flush-to-zero applies only to the thread that set it, so rows computed by other threads would have other bits. The C
kernels set the state of their own threads.
"""

from __future__ import annotations

import sys

import torch

SMALLEST_NORMAL, SMALLEST_DENORMAL = sys.float_info.min, 5e-324


def flushes_denormals() -> bool:
    """Whether this thread treats denormals as zero, as operands or as results."""
    half, one = 0.5, 1.0
    return SMALLEST_NORMAL * half == 0.0 or SMALLEST_DENORMAL * one == 0.0


class DenormalsKept:
    """Disables flush-to-zero inside a `with` block, and restores the caller's setting after it."""

    def __enter__(self) -> None:
        self._flushed = flushes_denormals()
        if self._flushed:
            torch.set_flush_denormal(False)

    def __exit__(self, *_: object) -> None:
        if self._flushed:
            torch.set_flush_denormal(True)
