"""The bfloat16 kernels for AVX-512 and AMX keep their laws on a processor without them, where C code takes the place of
their instructions (`tests/emulated`). That is slow, so the laws run on their smallest cases."""

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

from orthrus.backends.native import compiler

TESTS = Path(__file__).parents[1]
EMULATED = TESTS / "emulated"
LEVELS = {"avx512": (), "avx512 bf16": ("-DEMULATED_BF16",), "amx": ("-DEMULATED_BF16", "-DEMULATED_AMX")}
FLAGS = (
    "-O1", *compiler.FLAGS[1:], "-march=x86-64-v3", "-Wno-psabi", f"-I{EMULATED}", "-include", "immintrin.h",
)  # fmt: skip
PATCHES = {
    "simd_avx512.h": {
        '__asm__("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(*x));': "lanes = (__m512i)_mm512_set1_ps(*x);",
        '__asm__("" : "+v"(x));': "",
    },
    "library.h": {"syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)": "0"},
    "team.c": {'#include "team.h"\n': '#include "team.h"\n\n__thread Tiles tiles;\n'},
}
"""What is no intrinsic: assembly with AVX-512 registers, the request for tiles; and where the tiles of a thread are."""
NAMES = {"__m512bh": "emulated_m512bh", "__m256bh": "emulated_m256bh", "_mm256_dpbusd_epi32": "emulated_dpbusd_of_256"}
LAWS = {
    "test_kernels.py": "bf16 and (every_row and 9 or linear_forms and 96 or int8_forms and 96"
    " or kept and (Q4_1 or Q5_0 or Q5_1) or multiplied_as_integers and 32)",
    "test_k_quants.py": "whole_pass or products_have and Q4_K or runs_in_int8 and True",
    "test_tree_kernels.py": "bf16 and 3",
    "test_draft_trees.py": "bf16",
    "test_trees.py": "bf16 and native and (plain_decoding or after_their_paths) and (qwen3 or llama)",
}
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported(), reason="the emulation needs AVX2"
    ),
]


@pytest.fixture(name="library", scope="module", params=list(LEVELS))
def _library(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("emulated")
    sources = shutil.copytree(compiler.SOURCES, directory / "c")
    for name, changes in PATCHES.items():
        text = (sources / name).read_text()
        for old, new in changes.items():
            assert old in text, (name, old)
            text = text.replace(old, new)
        (sources / name).write_text(text)
    text = "".join(path.read_text() for path in sources.iterdir())
    found = {name: f"emulated{name.removeprefix('_mm512')}" for name in re.findall(r"\b_(?:mm512|tile)_\w+", text)}
    lines = [f"#undef {name}\n#define {name} {own}\n" for name, own in (found | NAMES).items()]
    (sources / "names.h").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "SOURCES", sources)
        try:
            words = [*compiler.command(), *FLAGS, f"-I{sources}", *LEVELS[request.param]]
        except compiler.UnavailableError as error:
            pytest.skip(f"the emulation cannot be compiled: {error}")
        compiler.compile_library(words, "bfloat16", directory / "library.so")
    return directory / "library.so"


@pytest.mark.parametrize("laws", list(LAWS))
def test_the_laws_of_kernels_hold_with_emulated_instructions(library, laws):
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "emulated.plugin", "-k", LAWS[laws]]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(Path(__file__).with_name(laws))],
        capture_output=True, text=True, check=False,
        env={**os.environ, "EMULATED_LIBRARY": str(library), "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-3000:]  # 5 where no law was chosen
