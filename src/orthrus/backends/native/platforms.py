"""The platforms whose wheels carry libraries, compiled for all of them by one compiler that PyPI has (`make wheels`).

Not built: Windows, whose threads and allocation of memory the kernels do not know, and macOS on x86-64, for which
there is no current torch. There the pure-Python wheel runs on torch's kernels; macOS compiles on first use.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from orthrus.backends.native import compiler, levels, prebuilt
from orthrus.backends.native.levels import Level


@dataclass(frozen=True)
class Platform:
    """A system and an architecture. target: their name for the compiler; tag: the name for a package index."""

    machine: str
    target: str
    tag: str


PLATFORMS = {
    "linux-x86_64": Platform("x86_64", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"),
    "linux-aarch64": Platform("aarch64", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64"),
    "macos-arm64": Platform("aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
}


def build(name: str, directory: Path) -> tuple[list[Path], str]:
    """The libraries of a platform, compiled if need be, and the tag of a wheel with them.

    Raises ValueError where the name is unknown, and UnavailableError where a library cannot be compiled.
    """
    if name not in PLATFORMS:
        raise ValueError(f"no platform {name!r}: {', '.join(PLATFORMS)} are there")
    platform = PLATFORMS[name]
    asked = [level for level in levels.LEVELS if level.machine == platform.machine]
    if not asked:
        raise compiler.UnavailableError(f"there are no levels of {platform.machine} processors")
    return prebuilt.build(_refuse, directory / name, asked, partial(command, platform)), platform.tag


def _refuse(reason: str) -> None:
    raise compiler.UnavailableError(reason)


def command(platform: Platform, level: Level) -> list[str]:
    """The compiler of a level, without symbols for debuggers. Raises UnavailableError where it is not installed."""
    if find_spec("ziglang") is None:
        raise compiler.UnavailableError("a wheel for a named platform needs the package `ziglang`")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", platform.target, "-s", "-Wno-unused-command-line-argument"]
    return [*zig, *compiler.FLAGS, zig_processor(level)]


def zig_processor(level: Level) -> str:
    """The flags of a level in zig's words: `-march=x86-64-v4 -mavx512bf16` is `-mcpu=x86_64_v4+avx512bf16`."""
    march, *features = (word.removeprefix("-m") for word in shlex.split(level.flags))
    name, *more = march.removeprefix("arch=").split("+")
    if name.startswith("armv"):
        name, more = "generic", [name.removeprefix("arm").replace("-a", "a").replace(".", "_"), *more]
    words = [word.replace("-", "_") for word in (name, *more, *features)]
    return f"-mcpu={'+'.join(words)}"
