"""Limits that a command sets before it loads a model: CPU threads and the size of the context."""

from __future__ import annotations

MAX_THREADS = 1024


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads. Raises ValueError if it is out of range."""
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"--threads must lie in 1..{MAX_THREADS}, not {threads}")
    import torch

    torch.set_num_threads(threads)


def apply_limits(ctx_size: int | None, threads: int | None) -> None:
    """Check the size of the context and set the number of CPU threads. Raises ValueError if one is out of range."""
    if ctx_size is not None and ctx_size < 1:
        raise ValueError(f"--ctx-size must be at least 1, not {ctx_size}")
    set_threads(threads)
