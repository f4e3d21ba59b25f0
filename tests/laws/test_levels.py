"""The kernels for AVX2 contain no other instructions, and keep their laws."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orthrus.backends.native import build, compiler, levels
from orthrus.file_cache import cache_directory

LAWS = ("test_kernels.py", "test_k_quants.py")
CHOSEN = (
    "(every_row and 9) or (linear_forms and 96) or (int8_forms and 96) or whole_pass"
    " or (kept and (Q4_1 or Q5_0) and 576) or (multiplied_as_integers and (Q5_0 or Q8_0) and 576)"
)
LEVEL = "x86-64-v3"
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported(), reason="this processor has no AVX2"
)


def library(dtype, monkeypatch):
    """The path of the kernels for AVX2, kept as users' are."""
    monkeypatch.setenv(levels.MARCH, LEVEL)
    try:
        return build._compiled(dtype, cache_directory())
    except compiler.UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", list(compiler.DEFINES))
def test_the_library_for_avx2_has_no_instruction_of_avx512(dtype, monkeypatch):
    if not shutil.which("objdump"):
        pytest.skip("objdump is not installed")
    path = library(dtype, monkeypatch)
    listing = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    wide = re.findall(r"^ +[0-9a-f]+:\t62 .*|.*%zmm.*", listing, re.MULTILINE)  # 62: the first byte of EVEX
    assert "%ymm" in listing and not wide, wide[:5]


def test_the_laws_of_kernels_hold_on_avx2(monkeypatch):
    for dtype in compiler.DEFINES:
        library(dtype, monkeypatch)
    words = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN]
    words += [str(Path(__file__).with_name(laws)) for laws in LAWS]
    environment = {**os.environ, levels.MARCH: LEVEL}
    process = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stdout[-3000:]
    assert all(re.search(rf"{laws} s*\.", process.stdout) for laws in LAWS), f"a file ran no law: {process.stdout}"
