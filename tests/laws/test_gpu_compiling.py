"""The Triton kernels compile for GPUs that are not here: their code, their shared memory and their instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for CUDA, and with the extra `dev`")

SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on the smallest of the GPUs since 2020."""


def compiled(architecture, dtype, size):
    """What `compile_triton.py` prints. The process of the tests has the interpreter instead of the compiler."""
    script = Path(__file__).parents[1] / "compile_triton.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, str(architecture), dtype, str(size)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


CASES = [(90, "bf16", 64), (80, "bf16", 128), (90, "bf16", 128), (90, "bf16", 256), (90, "fp32", 128)]
"""Compute capabilities times ten, types, head sizes. The first runs always, the others with `--full`."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compile_and_fit_into_any_gpu(case, request):
    if case != CASES[0] and not request.config.getoption("--full"):
        pytest.skip("make laws-full compiles for this one too")
    found = compiled(*case)
    assert {name: own["shared"] for name, own in found.items() if own["shared"] > SHARED} == {}
    # tiles of 16 and of 32 rows sum by the same instruction, and so do all passes of attention
    for kind in ("linear", "attention"):
        instructions = {tuple(own["instructions"]) for name, own in found.items() if name.startswith(kind)}
        assert len(instructions) <= 1
        assert not any("wgmma" in one for own in instructions for one in own)
