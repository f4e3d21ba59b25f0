"""Chooses the library of C kernels that this process uses, and compiles it on first use where none is ready.

In order of preference: the one that was compiled on this machine for its processor, the best of those that came with
the package (`prebuilt`), and a new one, compiled into the user's cache. $CC asks for compiling, and so does
$ORTHRUS_MARCH if it is `native`. If it names a level, only the library of that level is used: built ahead or compiled.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from orthrus.backends.native import compiler, levels, prebuilt, structs
from orthrus.backends.native.compiler import UnavailableError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def library(dtype: torch.dtype, cache_directory: Path) -> ctypes.CDLL:
    """The kernels of `c/` for `dtype`, which are the same ones throughout a process.

    Raises UnavailableError, and ValueError where $ORTHRUS_MARCH names no level.
    """
    name = str(dtype).removeprefix("torch.")
    try:
        chosen = _chosen(name, cache_directory, _asked())
        if not compiler.is_intact(chosen):  # it was, when this process chose it
            _chosen.cache_clear()
            chosen = _chosen(name, cache_directory, _asked())
        try:
            return load(chosen)
        except OSError as error:  # a system that lacks a library, or has an older one
            if chosen.parent != prebuilt.LIBRARIES:
                raise
            log.warning("%s cannot be loaded, so the kernels are compiled: %s", chosen, error)
            return load(_compiled(name, cache_directory))
    except OSError as error:
        raise UnavailableError(f"the compiled kernels cannot be kept or loaded: {error}") from error


def load(path: Path) -> ctypes.CDLL:
    """The library in a file that is intact. Raises OSError, and UnavailableError where its structs do not match."""
    loaded = ctypes.CDLL(str(path))
    wrong = structs.mismatch(loaded)
    if wrong:
        raise UnavailableError(f"the C structs do not match this version of the package: {wrong}")
    return loaded


def compile_ahead(dtype: str, cache_directory: Path) -> None:
    """Compile the library if need be, for a thread that runs while others import torch and read files."""
    with suppress(UnavailableError, OSError, ValueError):  # `library` finds the same error and reports it
        _chosen(dtype, cache_directory, _asked())


def compile_here(dtype: str, cache_directory: Path) -> Path:
    """Compile the library for the processor of this machine, unless that was done, and use it from now on.

    Raises UnavailableError and OSError.
    """
    path = _compiled(dtype, cache_directory)
    _chosen.cache_clear()
    return path


def ready(dtype: str, cache_directory: Path) -> Path | None:
    """The library that would be used without compiling anything; None where there is none."""
    if os.environ.get("CC") or os.environ.get(levels.MARCH) == levels.NATIVE:
        with suppress(UnavailableError):
            path = _target(dtype, cache_directory, compiler.command())
            return path if compiler.is_intact(path) else None
        return None
    here = [_target(dtype, cache_directory, [name]) for name in compiler.USUAL]
    compiled = next(filter(compiler.is_intact, here), None)
    level = levels.asked()
    usable = levels.runnable(levels.processor_features()) if level is None else [level]
    return compiled or prebuilt.find(dtype, usable, prebuilt.LIBRARIES)


def origin(path: Path) -> str:
    """How a library came to be, for people."""
    if path.parent == prebuilt.LIBRARIES:
        return f"built ahead, {path.stem.rsplit('-', 2)[0]}"
    return f"compiled on this machine, {shlex.join(_flags()[len(compiler.FLAGS) :])}"


def _asked() -> tuple[str, ...]:
    """What the user set of the variables that decide which library it is."""
    return tuple(os.environ.get(name, "") for name in ("CC", levels.MARCH))


@cache
def _chosen(dtype: str, cache_directory: Path, asked: tuple[str, ...]) -> Path:
    """The library to use, compiled if need be. Raises UnavailableError and OSError.

    Kept, so that a library that another process compiles meanwhile does not come between two loads of this one.
    """
    del asked  # part of the key of what is kept
    return ready(dtype, cache_directory) or _compiled(dtype, cache_directory)


def _compiled(dtype: str, cache_directory: Path) -> Path:
    """The library compiled on this machine. Raises UnavailableError and OSError."""
    if dtype not in compiler.DEFINES:
        raise UnavailableError(f"there are no C kernels for {dtype}")
    if platform.system() not in ("Linux", "Darwin"):
        raise UnavailableError(f"the C kernels are not compiled on {platform.system()}")
    words = compiler.command()
    target = _target(dtype, cache_directory, words)
    if compiler.is_intact(target):
        return target
    with _one_at_a_time(target):
        if not compiler.is_intact(target):
            if target.exists():
                log.warning("%s is damaged: its checksum differs; it is compiled again", target)
            compiler.compile_library([*words, *_flags()], dtype, target)
    return target


def _target(dtype: str, cache_directory: Path, words: list[str]) -> Path:
    """Where a compiler's library is kept: machines whose processors differ may share a home directory."""
    return cache_directory / f"native-{dtype}-{compiler.key(_flags(), words, levels.features_line())}.so"


def _flags() -> tuple[str, ...]:
    level = levels.asked()
    return (*compiler.FLAGS, *(shlex.split(level.flags) if level else (f"-march={levels.NATIVE}",)))


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Let one thread of one process compile; the others wait for it and find the library."""
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
