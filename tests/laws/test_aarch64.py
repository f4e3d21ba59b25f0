"""On aarch64, in an emulator, kernels and whole passes have the bits that they have with AVX2, and a greedy answer in
parallel is that of plain decoding. With BF16 instructions products have bits of their own, and rows keep theirs. The
instructions for matrices of int8 (i8mm) change no bit.

`tests/native_cases.py` has calls of every family of kernels, `tests/native_recording.py` those of a whole decoding.
`tests/decode_on_aarch64.py` does the same with the demo model, in minutes.
"""

from __future__ import annotations

import platform
import shutil

import native_cases
import native_image
import native_recording
import pytest
import tiny
import torch

from orthrus.backends.native import build, compiler, levels
from orthrus.backends.native import kernels as native
from orthrus.file_cache import cache_directory
from orthrus.runner.runner import Runner

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
LEVELS = [level for level in levels.LEVELS if level.machine == "aarch64"]
MAPS = (
    "linear",
    "linear_int8",
    "Q4_1 by int8",
    "Q5_0 by int8",
    "Q8_0 by int8",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)
INTEGER = ("linear_int8", "Q4_1 by int8", "Q5_0 by int8", "Q8_0 by int8")
"""Those whose bits are the same at all levels, because they sum integers."""
ORDERS = {"codes", "groups of Q4_1", "groups of Q5_0", "groups of Q8_0"}
"""Results whose order differs between levels: packed weights."""
pytestmark = [
    pytest.mark.skipif(
        platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported(), reason="no AVX2 to compare with"
    ),
    *(pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed") for name in (CROSS, EMULATOR)),
]


@pytest.fixture(name="decoded", scope="module")
def _decoded():
    """A decoding by the kernels for AVX2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(levels.MARCH, "x86-64-v3")
        kernels = native.load(torch.bfloat16, cache_directory())
    runner = Runner.prepare(tiny.decoder("qwen3", "bf16"), kernels, low_precision=True)
    return native_recording.record(runner, tiny.request(20).prompt, 12, threads=2)


@pytest.fixture(name="cases", scope="module")
def _cases(tmp_path_factory):
    """Calls of kernels, and their results with AVX2."""
    image, directory = native_cases.image(torch.bfloat16), tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(levels.MARCH, "x86-64-v3")
        library = build._compiled("bfloat16", cache_directory())
    linked = [str(library), f"-Wl,-rpath,{library.parent}"]
    here = native_image.link(compiler.command(), [image], linked, directory / "here")
    return image, native_image.run(image, [str(here)], directory)


def rows_are_independent(results):
    """Whether the rows of every map are the same in calls of any number of rows."""
    whole = {name: results[f"{name} {native_cases.ROWS[-1]}"] for name in MAPS if f"{name} 1" in results}
    return all(torch.equal(results[f"{name} {n}"], whole[name][:n]) for name in whole for n in native_cases.ROWS)


def results_there(flags, cases, decoded, directory):
    """The results of calls and of a decoding, by the kernels that are compiled with these flags."""
    words = [CROSS, flags, "-static"]
    directory.mkdir()
    kernels = native_image.compile_kernels(words, compiler.DEFINES["bfloat16"], directory)
    there = native_image.link(words, [cases[0], decoded.image], kernels, directory / "there")
    return [native_image.run(image, [EMULATOR, str(there)], directory) for image in (cases[0], decoded.image)]


def different(found, expected):
    return {name for name in expected if not torch.equal(found[name], expected[name])}


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_kernels_and_decoding_on_aarch64_have_the_bits_of_avx2(level, cases, decoded, tmp_path):
    image, expected = cases
    found, passes = results_there(level.flags, cases, decoded, tmp_path / "level")
    assert rows_are_independent(expected) and rows_are_independent(found) and len(found) == len(image.outputs)
    assert decoded.different(decoded.logits) == [] and decoded.different(passes) == []
    if "bf16" not in level.features:
        assert different(found, expected) == different(passes, decoded.logits) == set()
        assert decoded.answer(passes) == decoded.text[-len(decoded.plain) :]
    if "i8mm" in level.features:
        without, passes_without = results_there(f"{level.flags}+noi8mm", cases, decoded, tmp_path / "without")
        assert different(found, without) == ORDERS and different(passes, passes_without) == set()
        assert not different(found, expected) & {f"{name} {rows}" for name in INTEGER for rows in native_cases.ROWS}
