"""The C kernels, compiled once on the user's machine and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name("c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
"""No contraction into fused multiply-adds: vector loop and scalar tail must round alike."""
THREADING = "-fopenmp"
"""The OpenMP runtime is found by name, and torch has already loaded its own: both share one pool of threads."""
DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16"}


def library(dtype: torch.dtype, cache_directory: Path) -> ctypes.CDLL | None:
    """`native.c` for `dtype`, compiled into `cache_directory` on first use; None where that cannot be done."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if dtype not in DEFINES or compiler is None or platform.system() not in ("Linux", "Darwin"):
        return None
    key = hashlib.sha256(
        repr(([path.read_bytes() for path in sorted(SOURCES.iterdir())], FLAGS, compiler, _processor())).encode()
    ).hexdigest()[:16]
    target = cache_directory / f"native-{DEFINES[dtype].lower()}-{key}.so"
    try:
        if not target.exists():
            _compile(compiler, DEFINES[dtype], target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, define: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / target.name
        command = [compiler, *FLAGS, f"-D{define}", str(SOURCES / "native.c"), "-o", str(built), "-lm"]
        threaded = subprocess.run([*command, THREADING], check=False, capture_output=True, timeout=120)
        if threaded.returncode:  # a compiler without OpenMP: the same kernels on one thread
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        built.replace(target)


def _processor() -> str:
    """What `-march=native` depends on: a home directory may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
