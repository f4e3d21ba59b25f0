"""The demo model with AVX2 alone, without a C compiler, with a failing compiler, and with a damaged cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

import orthrus
from orthrus.backends import select
from orthrus.backends.native import compiler, levels
from orthrus.backends.native import kernels as native
from orthrus.file_cache import cache_directory

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", levels.MARCH: "x86-64-v3"}
DEMO = """
import logging, orthrus
logging.basicConfig(format="log: %(message)s")
model = orthrus.load("smollm2-demo")
assert model.runner.exact
prompt = "What is 7 + 5?"
plain = model.generate(prompt, max_new_tokens=10, cycle="ar").tokens
for cycle in ("two-pass", "one-pass"):
    assert model.generate(prompt, max_new_tokens=10, cycle=cycle).tokens == plain, cycle
tables = model.runner.new_tables(1, 64)
model.runner.ar([[1, 2, 3]], tables)
tables[0].commit(3)
(tree,) = model.runner.ar([[5, 6, 7, 8]], tables, parents=[[-1, 0, 0, 2]])
(path,) = model.runner.ar([[5, 7, 8]], tables)
assert (tree[[0, 2, 3]] == path).all()
print(model.runner.kernels.name, {linear.name for linear in model.decoder.linears().values()})
print("notice:", model.runner.kernels.notice)
"""


def demo(cache, **environment):
    """Load the demo model in its own process, and compare its cycles with plain decoding."""
    process = subprocess.run(
        [sys.executable, "-c", DEMO],
        env={**os.environ, "ORTHRUS_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="this processor has no AVX2")
def test_the_demo_runs_on_avx2():
    output, _ = demo(cache_directory(), **AVX2)
    assert output.startswith("native C {'native C, ") and "oneDNN" not in output and "notice: None" in output


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="this processor has no AVX2")
def test_the_demo_runs_without_a_compiler_and_says_so(tmp_path):
    output, _ = demo(tmp_path, CC="no-such-compiler", **AVX2)
    assert "torch {'oneDNN, expanded to fp32'}" in output
    assert "notice: no C compiler: $CC names 'no-such-compiler', which is not there." in output


def test_int8_without_fast_kernels_warns_that_it_is_slow(tmp_path, monkeypatch):
    checkpoint = tiny.save_checkpoint(tmp_path / "model")
    assert orthrus.load(str(checkpoint), dtype="float32").warnings == []
    monkeypatch.setenv("CC", "no-such-compiler")
    warnings = orthrus.load(str(checkpoint), dtype="float32", quantize="int8").warnings
    assert any("no fast int8 kernels here" in warning for warning in warnings)


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'native.c:1: error: this is no C compiler' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    kernels = select.fastest(torch.float32, torch.device("cpu"), tmp_path)
    assert kernels.name == "torch"
    assert "native.c:1: error: this is no C compiler" in kernels.notice
    assert str(fake) in kernels.details
    assert native.load(torch.float32, tmp_path) is None


def test_doctor_shows_the_output_of_the_compiler_and_generate_its_first_error(run, tmp_path, monkeypatch):
    checkpoint = tiny.save_checkpoint(tmp_path / "model")
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'first line' >&2\necho 'native.c:1: error: no' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    code, out, _ = run("doctor", "--model", checkpoint, "--dtype", "float32", "--verbose")
    assert code == 0
    assert "the C compiler failed: native.c:1: error: no." in out
    assert "first line\nnative.c:1: error: no" in out
    options = ["--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 2, "--cycle", "two-pass"]
    assert run("generate", "hi", *options)[2].count("native.c:1: error: no") == 1


@pytest.mark.parametrize("damage", ["truncated", "no checksum", "checksum of another"])
def test_a_damaged_library_is_compiled_again_with_one_message(tmp_path, caplog, damage, monkeypatch):
    """The compiler's part is played by a copy of the library that the other tests use."""
    usual = native.load(torch.float32, cache_directory())
    if usual is None:
        pytest.skip("no C compiler on this machine")
    compiled = []
    monkeypatch.setattr(compiler, "_failed_build", lambda _, made: compiled.append(shutil.copy(usual.path, made)))
    monkeypatch.setenv(levels.MARCH, "native")  # else one that was built ahead may run
    assert native.load(torch.float32, tmp_path) is not None
    assert len(compiled) == 1
    (built,) = tmp_path.glob("native-*.so")
    whole = built.read_bytes()
    (checksum,) = tmp_path.glob("native-*.sha256")
    built.unlink()  # a loaded library must not be overwritten
    built.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else whole)
    if damage == "no checksum":
        checksum.unlink()
    elif damage == "checksum of another":
        checksum.write_text("0" * 64)
    kernels = native.load(torch.float32, tmp_path)
    assert kernels is not None
    assert len(compiled) == 2
    assert built.read_bytes() == whole
    assert [record.message for record in caplog.records] == [
        f"{built} is damaged: its checksum differs; it is compiled again"
    ]
    assert native.load(torch.float32, tmp_path) is not None
    assert len(caplog.records) == 1
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_leaves_the_torch_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv(levels.MARCH, "native")
    blocked = Path(tmp_path / "file")
    blocked.write_text("")
    kernels = select.fastest(torch.float32, torch.device("cpu"), blocked / "cache")
    assert "cannot be kept or loaded" in kernels.notice
