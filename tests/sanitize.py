"""Runs the laws of the C kernels with the sanitizers of gcc for addresses and undefined behaviour.

`python tests/sanitize.py [LEVEL...]`: by default for this very processor and for AVX2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
LAWS = ("kernels", "k_quants", "packing", "tree_kernels", "draft_trees", "head_rows", "team")
LEFT_OUT = "run_out_of_threads and code2"
"""It limits the address space, of which the sanitizers reserve terabytes."""
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"
"""Python leaks by design; and the stacks that the latter makes are not aligned as AVX-512 needs (GCC bug 110027)."""
PRELOADED = ("libasan.so", "libstdc++.so")
"""The first ends a process in which a library throws an exception, unless it found the `__cxa_throw` of the second."""
NOT_COMPILED = "no C compiler on this machine"
"""Why laws are left out, also where the compiler fails."""


def main(*levels: str) -> None:
    runtimes = " ".join(_path_of(library) for library in PRELOADED)
    environment = {
        **os.environ, "CC": f"sh {TESTS / 'sanitizing_cc.sh'}", "LD_PRELOAD": runtimes,
        "ASAN_OPTIONS": ASAN_OPTIONS, "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    options = ("-q", "-s", "-rs", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})")
    words = [sys.executable, "-m", "pytest", *options]
    for level in levels or ("native", "x86-64-v3"):
        print(f"{level}:", flush=True)
        process = subprocess.run(
            [*words, *(str(TESTS / "laws" / f"test_{law}.py") for law in LAWS)], capture_output=True, text=True,
            check=False, env={**environment, "ORTHRUS_MARCH": level},
        )  # fmt: skip
        print(process.stdout[-6000:], process.stderr[:6000])  # a report begins with its cause
        if process.returncode or NOT_COMPILED in process.stdout:
            sys.exit(1)


def _path_of(library: str) -> str:
    command = ["gcc", f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:])
