"""Limits of a command: CPU threads, the size of the context, and the length of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthrus.machine_load import usable_processors

if TYPE_CHECKING:
    from orthrus.api import Model

MAX_THREADS = 1024


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads. Raises ValueError if it is out of range, or more than there are processors."""
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"--threads must lie in 1..{MAX_THREADS}, not {threads}")
    processors = usable_processors()
    if threads > processors:
        raise ValueError(
            f"--threads {threads} is more than the {processors} processors that this process may use, and threads that"
            f" wait for one another are slow: give at most {processors}"
        )
    import torch

    torch.set_num_threads(threads)


def apply_limits(ctx_size: int | None, threads: int | None) -> None:
    """Check the size of the context and set the number of CPU threads. Raises ValueError if one is out of range."""
    if ctx_size is not None and ctx_size < 1:
        raise ValueError(f"--ctx-size must be at least 1, not {ctx_size}")
    set_threads(threads)


def check_length(model: Model, max_new_tokens: int | None) -> None:
    """Raise ValueError where an answer is asked for that is longer than prompt and answer may be together."""
    context = model.limits.max_positions
    if max_new_tokens is not None and max_new_tokens > context:
        raise ValueError(
            f"--max-new-tokens {max_new_tokens} is beyond the context of {context} tokens, which hold prompt and answer"
            f" together: give less than {context}"
        )
