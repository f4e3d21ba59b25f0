"""The heap of the C library, which keeps what was freed: after probes a third of the memory of a small model, and
as much as a tokenizer after parsing one."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim() -> None:
    """Return freed memory to the system, where the C library can (glibc)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
