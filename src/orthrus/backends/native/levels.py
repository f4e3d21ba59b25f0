"""The levels of processors for which libraries are compiled ahead, and which of them this processor runs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Level:
    """Code for all processors of an architecture that have some features.

    machine: `platform.machine()`. flags: what the compiler is given. features: what `/proc/cpuinfo` of a processor
    lists if it runs this code.
    """

    name: str
    machine: str
    flags: str
    features: str


V4 = (
    "abm avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 cx16 f16c fma lahf_lm movbe popcnt sse4_1"
    " sse4_2 ssse3 xsave"
)
V4_BF16 = ("-march=x86-64-v4 -mavx512vnni -mavx512bf16", f"{V4} avx512_vnni avx512_bf16")
AMX = ("-mamx-tile -mamx-int8 -mamx-bf16", "amx_tile amx_int8 amx_bf16")
LEVELS = (
    Level("x86-64-amx", "x86_64", f"{V4_BF16[0]} {AMX[0]}", f"{V4_BF16[1]} {AMX[1]}"),
    Level("x86-64-v4-bf16", "x86_64", *V4_BF16),
)
"""Best first. Code of a level asks the operating system for tiles and does without them where it refuses."""


def of_architecture() -> list[Level]:
    """The levels of the architecture of this machine; none but on Linux, which lists the features of its processor."""
    return [level for level in LEVELS if platform.system() == "Linux" and level.machine == platform.machine()]


def runnable(features: frozenset[str]) -> list[Level]:
    """The levels that a processor of this architecture with `features` runs, best first."""
    return [level for level in of_architecture() if features.issuperset(level.features.split())]


def processor_features() -> frozenset[str]:
    """The features of this processor; empty where the system does not list them."""
    return frozenset(features_line().partition(":")[2].split())


def features_line() -> str:
    """The line of `/proc/cpuinfo` with the features, else the name of the processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
