"""The C kernels compile for every kind of processor, whichever compiles them here, and a probe of few outputs finds the
rule of all."""

from __future__ import annotations

import platform
import subprocess

import gguf
import pytest
import tiny
import torch

from orthrus import quantization
from orthrus.backends.invariance import find_row_rule
from orthrus.backends.native import compiler, levels
from orthrus.backends.native import kernels as native
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.native.linears import PROBED_OUTPUTS
from orthrus.file_cache import cache_directory
from orthrus.model.linear import Linear

FLAGS = list(dict.fromkeys([
    "-march=x86-64", "-march=x86-64-v3", "-march=cascadelake", "-march=sapphirerapids",
    *(level.flags for level in levels.LEVELS if level.machine == "x86_64"),
]))  # fmt: skip
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsyntax-only")


@pytest.mark.parametrize("unit", compiler.UNITS)
@pytest.mark.parametrize("define", list(compiler.DEFINES.values()))
@pytest.mark.parametrize("flags", FLAGS)
def test_every_unit_compiles_for_other_processors(flags, define, unit):
    """Without AVX2, with AVX-512 but no bf16, with tiles: code that this processor never compiles."""
    if platform.machine() != "x86_64":
        pytest.skip("another architecture")
    try:
        words = compiler.command()
    except compiler.UnavailableError:
        pytest.skip("no C compiler on this machine")
    command = [*words, *compiler.FLAGS, *STRICT, *flags.split(), f"-D{define}"]
    compiled = subprocess.run([*command, str(compiler.SOURCES / unit)], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize("kind", [None, *quantization.BYTES])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("forms", [NativeKernels.packed, NativeKernels.quantised], ids=["packed", "int8"])
def test_the_first_outputs_of_a_map_show_the_rule_of_all(forms, dtype, kind):
    kernels = native.load(tiny.DTYPES[dtype], cache_directory())
    if kernels is None:
        pytest.skip("no C compiler on this machine")
    plain = Linear(64, 2 * PROBED_OUTPUTS + 96, bias=True, dtype=tiny.DTYPES[dtype], device=torch.device("cpu"))
    plain.bias.copy_(torch.randn(plain.shape[0]))
    plain.weight.copy_(torch.randn(plain.shape) / 8)
    if kind is not None:
        raw = torch.from_numpy(gguf.quantize(plain.weight.float().numpy(), gguf.GGMLQuantizationType[kind]))
        plain.group_quantized = quantization.GroupQuantized(kind, raw.unflatten(1, (-1, quantization.BYTES[kind])))
    form, x = next(forms(kernels, plain))(), torch.randn(512, 64).to(plain.dtype)
    assert form.probe(x).shape[1] == PROBED_OUTPUTS
    assert torch.equal(form.probe(x), form.run(x)[:, : form.probe(x).shape[1]])
    assert find_row_rule(form.probe, x, form.min_multiple) == find_row_rule(form.run, x, form.min_multiple)
