"""The levels of processors for which libraries are compiled ahead, and which of them this process runs.

The names of features are those of Linux.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

MARCH, NATIVE = "ORTHRUS_MARCH", "native"
"""Environment variable: the name of the level to use, or `native`: compile for all that this processor has."""
CPUINFO = Path("/proc/cpuinfo")
SYSCTL = "/usr/sbin/sysctl"
OF_APPLE = {
    "AdvSIMD": "asimd", "FEAT_LSE": "atomics", "FEAT_DotProd": "asimddp", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm",
}  # fmt: skip
"""The features of Apple's processors, by the names in `hw.optional`."""
MACHINES = {"arm64": "aarch64"}
"""The names of architectures under macOS."""


@dataclass(frozen=True)
class Level:
    """Code for all processors of an architecture that have some features.

    machine: `platform.machine()` under Linux. flags: what the compiler is given. features: what `/proc/cpuinfo` of a
    processor lists if it runs this code.
    """

    name: str
    machine: str
    flags: str
    features: str


V3 = "abm avx avx2 bmi1 bmi2 cx16 f16c fma lahf_lm movbe popcnt sse4_1 sse4_2 ssse3 xsave"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"
V4_BF16 = ("-march=x86-64-v4 -mavx512vnni -mavx512bf16", f"{V4} avx512_vnni avx512_bf16")
AMX = ("-mamx-tile -mamx-int8 -mamx-bf16", "amx_tile amx_int8 amx_bf16")
LEVELS = (
    Level("x86-64-amx", "x86_64", f"{V4_BF16[0]} {AMX[0]}", f"{V4_BF16[1]} {AMX[1]}"),
    Level("x86-64-v4-bf16", "x86_64", *V4_BF16),
    Level("x86-64-v4-vnni", "x86_64", "-march=x86-64-v4 -mavx512vnni", f"{V4} avx512_vnni"),
    Level("x86-64-v4", "x86_64", "-march=x86-64-v4", V4),
    Level("x86-64-v3-vnni", "x86_64", "-march=x86-64-v3 -mavxvnni", f"{V3} avx_vnni"),
    Level("x86-64-v3", "x86_64", "-march=x86-64-v3", V3),
    Level("armv8.6-a", "aarch64", "-march=armv8.6-a", "asimd asimddp bf16 i8mm"),
    Level("armv8.2-a-dotprod", "aarch64", "-march=armv8.2-a+dotprod", "asimd asimddp atomics"),
    Level("armv8-a", "aarch64", "-march=armv8-a", "asimd"),
)
"""Best first. Code of a level asks the operating system for tiles and does without them where it refuses."""


def of_architecture() -> list[Level]:
    """The levels of the architecture of this machine; none on a system for which no libraries are built."""
    machine = platform.machine() if platform.system() == "Linux" else MACHINES.get(platform.machine(), "")
    return [level for level in LEVELS if platform.system() in ("Linux", "Darwin") and level.machine == machine]


def runnable(features: frozenset[str]) -> list[Level]:
    """The levels that a processor of this architecture with `features` runs, best first."""
    return [level for level in of_architecture() if features.issuperset(level.features.split())]


def asked() -> Level | None:
    """The level that $ORTHRUS_MARCH names, if it names one. Raises ValueError where this processor does not run it."""
    name = os.environ.get(MARCH) or NATIVE
    here = {NATIVE: None, **{level.name: level for level in runnable(processor_features())}}
    if name not in here:
        raise ValueError(f"{MARCH}={name!r} is no level of processors that this one runs: use {', '.join(here)}")
    return here[name]


def processor_features() -> frozenset[str]:
    """The features of this processor; empty where the system does not list them."""
    if platform.system() == "Darwin":
        return _features_of_apple()
    return frozenset(features_line().partition(":")[2].split())


def features_line() -> str:
    """The line of `/proc/cpuinfo` with the features, else the name of the processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _features_of_apple() -> frozenset[str]:
    try:
        command = [SYSCTL, "hw.optional"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    present = {line.split(":")[0].rpartition(".")[2] for line in listed.splitlines() if line.endswith(": 1")}
    return frozenset(ours for theirs, ours in OF_APPLE.items() if theirs in present)
