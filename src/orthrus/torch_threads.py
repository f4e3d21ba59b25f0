"""The threads of torch: how long idle ones wait for more work before they sleep, and how many there are.

By default they spin for milliseconds, on the processors that the threads of the C kernels then have to share with them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import local

POLICY = "OMP_WAIT_POLICY"
"""Environment variable: `active` or `passive`, for OpenMP of any maker."""
SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""For GNU's OpenMP, less than 0.1 ms; for LLVM's, in milliseconds."""


def wait_briefly() -> None:
    """Let idle threads of torch sleep soon, unless the user set how long, or torch is imported already: OpenMP reads
    it then."""
    if "torch" not in sys.modules and POLICY not in os.environ:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)


@contextmanager
def on_one() -> Iterator[None]:
    """Run torch's own operators on the calling thread alone meanwhile. C kernels still run on `kernel_threads`.

    What decoding leaves to torch between passes of C kernels is so short that to wake other threads takes longer. And
    where torch was imported before Orthrus, they would go on to spin on the processors that the next pass needs.
    """
    set_threads, threads = _openmp(), kernel_threads()
    if set_threads is None or _thread.kernel_threads:
        yield
        return
    _thread.kernel_threads = threads
    try:
        set_threads(1)
        yield
    finally:
        set_threads(threads)
        _thread.kernel_threads = 0


def kernel_threads() -> int:
    """The number of threads of a C kernel: that of torch, as it was before `on_one`."""
    return _thread.kernel_threads or _threads_of_torch()


def _threads_of_torch() -> int:
    import torch

    return torch.get_num_threads()


class _Thread(local):
    """Per thread: the kernel threads while `on_one` is entered, else 0."""

    kernel_threads = 0


_thread = _Thread()


@cache
def _openmp() -> Callable[[int], object] | None:
    """OpenMP's function that sets how many threads the calling thread may use, of the library that torch has loaded."""
    import torch

    return getattr(ctypes.CDLL(torch._C.__file__), "omp_set_num_threads", None)
