"""How much memory is free for the cache, and how large a cache may be."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from orthrus import heap
from orthrus.config import PAGE

CONTROL_GROUP = Path("/sys/fs/cgroup")
RESERVED = 0.1
"""The fraction of free memory that a cache leaves to the rest of the process."""


NEGLIGIBLE = 2**25
"""Bytes of a cache up to which memory is not asked about."""


def available_bytes(device: torch.device) -> int | None:
    """The free memory of a device; on CPUs also within the limit of the control group. None where it is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch holds it, unused
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type != "cpu":
        return None
    found = [_available_of_system(), _available_in_control_group()]
    return min((size for size in found if size is not None), default=None)


def affordable_pages(size: int, device: torch.device, wanted: int, least: int) -> int:
    """At most `wanted` pages of `size` bytes, as many as fit into memory. Raises ValueError if not even `least` do."""
    available = None if wanted * size <= NEGLIGIBLE else available_bytes(device)
    if available is None:
        return wanted
    usable = int(available * (1 - RESERVED))
    if least * size > usable:
        raise ValueError(
            f"a sequence of {least * PAGE} tokens needs {_gigabytes(least * size)} of key/value cache, and"
            f" {_gigabytes(usable)} are free: {_gigabytes(least * size - usable)} are missing. Lower --ctx-size"
            " (ctx_size=) or max_new_tokens, or free memory."
        )
    return min(wanted, usable // size)


def return_freed(device: torch.device) -> None:
    """Return memory to the system that nothing refers to any more: circles of objects, and what allocators keep."""
    gc.collect()
    heap.trim()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _available_of_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _available_in_control_group() -> int | None:
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text(encoding="utf-8").strip()
        used = int((CONTROL_GROUP / "memory.current").read_text(encoding="utf-8"))
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
