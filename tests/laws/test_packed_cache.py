"""A runner from the cache has the bits of one that was packed and probed; damage, limits and freeing."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import tiny
import torch

import orthrus
from orthrus import tensor_cache
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.native.state import state_of
from orthrus.model import families
from orthrus.runner import runner


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """An empty cache of packed weights; the compiled library and tokenizers stay those of the session."""
    monkeypatch.setattr(tensor_cache, "directory", lambda: tmp_path / "packed")


@pytest.fixture(name="packing")
def _packing(monkeypatch):
    """How often weights were packed, or probed."""
    calls = []

    def spy(name):
        real = getattr(runner, name)
        monkeypatch.setattr(runner, name, lambda *args, **options: calls.append(name) or real(*args, **options))

    spy("pack_linears")
    spy("choose_attention")
    return calls


def logits(model):
    """Of AR, diffusion and joint passes, and of the draft head."""
    made = model.runner
    tables = made.new_tables()
    tokens = [[n % 250 for n in range(3, 40)]]
    results = made.ar(tokens, tables)
    tables[0].commit(len(tokens[0]))
    if made.diffusion:
        results.append(made.diffuse([7], 8, tables, rows=8))
        joint = made.ar_and_diffuse([[7, 8, 9]], [[0, 2]], 4, tables)
        results += [*joint.logits, *joint.blocks, made.draft_logits(joint.blocks[0].flatten(0, 1))]
    return results


def findings(model):
    linears = model.decoder.linears().items()
    return {name: (type(linear), linear.name, linear.rule, linear.stored_bytes) for name, linear in linears} | {
        "attention": (model.runner.attention.rule, model.runner.attention.key_multiple, model.runner.attention.ragged),
        "draft bytes": model.runner.draft_bytes, "exact": model.runner.exact,
    }  # fmt: skip


def assert_equal(one, other):
    assert findings(one) == findings(other)
    for expected, found in zip(logits(one), logits(other), strict=True):
        assert torch.equal(expected, found)


def native(model):
    return isinstance(model.runner.kernels, NativeKernels)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"quantize": "int8"}, {"low_precision_drafts": False}])
@pytest.mark.parametrize("family", families.names())
def test_a_runner_from_the_cache_has_the_same_bits_and_findings(family, options, tmp_path, packing):
    tiny.save_checkpoint(tmp_path / "model", family)
    fresh = orthrus.load(tmp_path / "model", cache=False, **options)
    assert tensor_cache.used() == 0
    packed = orthrus.load(tmp_path / "model", **options)
    del packing[:]
    cached = orthrus.load(tmp_path / "model", **options)
    in_c = [state_of(linear) is not None for linear in cached.decoder.linears().values()]
    assert packing == [] or not (native(cached) and cached.runner.attention.ragged and all(in_c))
    assert_equal(fresh, packed)
    assert_equal(fresh, cached)


def test_the_demo_from_the_cache_has_the_same_bits_and_tokens(packing):
    fresh, _ = orthrus.load(cache=False), orthrus.load()
    del packing[:]
    cached = orthrus.load()
    assert packing == [] or not native(cached)
    assert_equal(fresh, cached)
    asked = {"max_new_tokens": 16, "cycle": "one-pass"}
    assert (
        fresh.generate("Name three colours.", **asked).tokens == cached.generate("Name three colours.", **asked).tokens
    )


def test_options_weights_and_views_have_entries_of_their_own(tmp_path):
    for seed in (0, 1):
        tiny.save_checkpoint(tmp_path / str(seed), seed=seed)
    entries = set()
    for options in ({}, {"quantize": "int8"}, {"low_precision_drafts": False}):
        for seed in (0, 1):
            model = orthrus.load(tmp_path / str(seed), **options)
            entries |= {path.name for path in tensor_cache.directory().glob("*")}
    assert len(entries) == (6 if native(model) else 0)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_entry_is_said_and_made_again(damage, tmp_path, packing, caplog):
    tiny.save_checkpoint(tmp_path / "model")
    fresh = orthrus.load(tmp_path / "model")
    if not native(fresh):
        pytest.skip("no native kernels")
    (entry,) = tensor_cache.directory().iterdir()
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    del packing[:]
    again = orthrus.load(tmp_path / "model")
    assert "is damaged" in caplog.text and packing
    assert_equal(fresh, again)
    del packing[:]
    orthrus.load(tmp_path / "model")
    assert packing == []


def test_a_damaged_weight_is_refused_when_it_is_packed(tmp_path):
    tiny.save_checkpoint(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj.weight holds NaN"):
        orthrus.load(tmp_path)
    assert tensor_cache.used() == 0


def test_no_plain_weight_of_a_packed_map_stays(tmp_path):
    tiny.save_checkpoint(tmp_path)
    model = orthrus.load(tmp_path, cache=False)
    names = [name for name, _ in model.decoder.named_parameters()]
    if native(model):
        assert not [name for name in names if name.endswith((".qkv.weight", ".o.weight", "up.weight", "down.weight"))]


@pytest.mark.parametrize("cache", [True, False])
def test_a_dropped_model_frees_its_weights(cache, tmp_path):
    """Counted twice, so that what stays for good (the library, the template) is there before.

    Stacks of threads that other tests began, 8 MB each, may come and go meanwhile.
    """
    tiny.save_checkpoint(tmp_path, hidden_size=512, intermediate_size=4096, head_dim=64)

    def mapped():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    sizes = []
    for _ in range(3):
        model = orthrus.load(tmp_path, cache=cache)
        model.generate([1, 2, 3], max_new_tokens=4, cycle="two-pass" if model.decoder.diffusion else "ar")
        parts = [weakref.ref(part) for part in (model, model.decoder, model.runner, model.runner.kernels)]
        during = mapped()
        del model
        sizes.append((during, mapped()))
        assert [part() for part in parts] == [None] * 4
    weights = 2 * 3 * 3 * 512 * 4096  # bytes of the MLPs
    assert sizes[2][0] - sizes[2][1] > weights / 2
    assert sizes[2][1] - sizes[1][1] < weights / 2
