"""Libraries that were compiled when the package was built or installed, one per level of processor and dtype.

The name of a library holds a digest of the sources and the flags, so one that was compiled from others is not found.
Where there is none for a processor, `build` compiles on first use.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orthrus.backends.native import compiler, levels
from orthrus.backends.native.levels import Level

LIBRARIES = Path(__file__).with_name("libraries")
"""The directory of those that belong to this package."""
GLIBC = {b"libc.so.6", b"libm.so.6", b"libpthread.so.0"}
"""The libraries of glibc that a wheel may expect on every Linux (PEP 600)."""

log = logging.getLogger(__name__)


def find(dtype: str, usable: Iterable[Level], directory: Path) -> Path | None:
    """The library of the first of these levels that has one; None where there is none.

    A damaged one is passed over with a warning.
    """
    for level in usable:
        library = _library(level, dtype, directory)
        if compiler.is_intact(library):
            return library
        if library.exists():
            log.warning("%s is damaged: its checksum differs; install the package again", library)
    return None


def compiler_here(level: Level) -> list[str]:
    """The compiler of this machine, for a level. Raises UnavailableError where there is none."""
    return [*compiler.command(), *_flags(level)]


def build(
    warn: Callable[[str], None],
    directory: Path,
    asked: Sequence[Level],
    compiler_for: Callable[[Level], list[str]] = compiler_here,
) -> list[Path]:
    """Compile the libraries of some levels that are missing, and remove those of other sources.

    Returns those of `asked` that are there. What cannot be compiled is left out, and `warn` gets one line that says
    why.
    """
    current = [_library(level, dtype, directory) for level in levels.LEVELS for dtype in compiler.DEFINES]
    _remove_others(directory, {library.stem for library in current})
    wanted = {_library(level, dtype, directory): (level, dtype) for level in asked for dtype in compiler.DEFINES}
    missing = {library: own for library, own in wanted.items() if not compiler.is_intact(library)}
    if missing:
        try:
            compile_one = partial(_compile, {level.name: compiler_for(level) for level in asked})
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                failed = list(filter(None, pool.map(compile_one, missing, *zip(*missing.values(), strict=True))))
        except compiler.UnavailableError as error:
            failed = [str(error)]
        if failed:
            warn(f"some C kernels are not built ahead, so they are compiled on first use: {failed[0]}")
    return [library for library in wanted if compiler.is_intact(library)]


def platform_tag(libraries: Iterable[Path]) -> str:
    """The platform tag of a wheel with these libraries.

    It is `manylinux` with the newest version of glibc that one of them needs, if they need no other library; else that
    of this system, which package indexes refuse.
    """
    names = set[bytes]().union(*(library.read_bytes().split(b"\0") for library in libraries))
    needed = {name for name in names if re.fullmatch(rb"(lib|ld-)[\w.+-]+\.so[\w.]*", name)}
    found = [re.fullmatch(rb"GLIBC_(\d+)\.(\d+)[\d.]*", name) for name in names]
    versions = [(int(version[1]), int(version[2])) for version in found if version]
    if versions and needed <= GLIBC:
        return "manylinux_{}_{}_{}".format(*max(versions), platform.machine())
    return f"{platform.system().lower()}_{platform.machine()}"


def _library(level: Level, dtype: str, directory: Path) -> Path:
    return directory / f"{level.name}-{dtype}-{compiler.key(_flags(level))}.so"


def _flags(level: Level) -> tuple[str, ...]:
    return (*compiler.FLAGS, *shlex.split(level.flags))


def _compile(compilers: dict[str, list[str]], library: Path, level: Level, dtype: str) -> str | None:
    """Compile one library. Returns why it cannot be, in one line."""
    try:
        compiler.compile_library(compilers[level.name], dtype, library)
    except (compiler.UnavailableError, OSError) as error:
        return f"{level.name}, {dtype}: {error}"
    return None


def _remove_others(directory: Path, stems: set[str]) -> None:
    for path in directory.glob("*"):
        if path.suffix in (".so", ".sha256") and path.stem not in stems:
            path.unlink(missing_ok=True)
