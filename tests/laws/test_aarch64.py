"""On aarch64, in an emulator, kernels have the bits that they have with AVX2, and rows do not depend on one another.

`tests/native_cases.py` has calls of every family of kernels, but for the whole forward, which calls those.
"""

from __future__ import annotations

import platform
import shutil

import native_cases
import native_image
import pytest
import torch

from orthrus.backends.native import build, compiler, levels
from orthrus.file_cache import cache_directory

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
LEVELS = ("armv8-a", "armv8.2-a+dotprod")
MAPS = ("linear", "linear_int8", "linear_w4a8", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
pytestmark = [
    pytest.mark.skipif(
        platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported(), reason="no AVX2 to compare with"
    ),
    *(pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed") for name in (CROSS, EMULATOR)),
]


def rows_are_independent(results):
    """Whether the rows of every map are the same in calls of any number of rows."""
    whole = {name: results[f"{name} {native_cases.ROWS[-1]}"] for name in MAPS if f"{name} 1" in results}
    return all(torch.equal(results[f"{name} {n}"], whole[name][:n]) for name in whole for n in native_cases.ROWS)


@pytest.mark.parametrize("level", LEVELS)
def test_kernels_on_aarch64_have_the_bits_of_avx2(level, tmp_path, monkeypatch):
    dtype = "bfloat16"
    image = native_cases.image(getattr(torch, dtype))
    monkeypatch.setenv(levels.MARCH, "x86-64-v3")
    library = build._compiled(dtype, cache_directory())
    linked = [str(library), f"-Wl,-rpath,{library.parent}"]
    here = native_image.link(compiler.command(), image, linked, tmp_path / "here")
    expected = native_image.run(image, [str(here)], tmp_path)
    words = [CROSS, f"-march={level}", "-static"]
    kernels = native_image.compile_kernels(words, compiler.DEFINES[dtype], tmp_path)
    there = native_image.link(words, image, kernels, tmp_path / "there")
    found = native_image.run(image, [EMULATOR, str(there)], tmp_path)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert rows_are_independent(expected) and len(found) == len(image.outputs)
