"""K-quants stay packed: their weights have the values of the `gguf` library, and their products the bits of weights
that were expanded in advance, in a map of their own and in a map fused from several types."""

from __future__ import annotations

import ctypes

import gguf
import k_blocks
import numpy as np
import pytest
import tiny
import tiny_gguf
import torch

from orthrus import quantization
from orthrus.backends.interface import RowRule
from orthrus.backends.invariance import find_row_rule
from orthrus.backends.linears import GroupedLinear, Int8Linear
from orthrus.backends.native import kernels as native
from orthrus.backends.native.linears import DequantLinear
from orthrus.checkpoint import hub
from orthrus.file_cache import cache_directory
from orthrus.k_quants import K_BYTES, KQuantized
from orthrus.model.linear import Linear
from orthrus.runner import native as native_runner
from orthrus.runner import prepare

Q = gguf.GGMLQuantizationType
COUNTS = (1, 2, 3, 5, 6, 7, 13, 16, 31, 33, 100)
FUSED = {
    "Q4_K/Q6_K": (("Q4_K", 64), ("Q4_K", 32), ("Q6_K", 32)),
    "Q5_K/Q8_0/Q4_K": (("Q5_K", 32), ("Q8_0", 96), ("Q4_K", 32)),
    "Q4_1/plain/Q6_K": (("Q4_1", 32), (None, 64), ("Q6_K", 32)),
}
"""Types and outputs of the sources of a map, by the types that it keeps."""


def values_of(kind, rows):
    return torch.from_numpy(gguf.dequantize(rows, Q[kind]).copy())


def stored(kind, outputs, inputs, seed=0):
    """The bytes of a matrix: any valid ones for K-quants, for the others those of random weights."""
    rng = np.random.default_rng(seed)
    if kind in K_BYTES:
        return k_blocks.random(rng, kind, outputs, inputs)
    return gguf.quantize(rng.standard_normal((outputs, inputs)).astype(np.float32), Q[kind])


@pytest.fixture(name="fast")
def _fast():
    found = native.load(torch.bfloat16, cache_directory())
    if found is None or not found.library.linear_dequant_scratch(32):
        pytest.skip("this processor has no products of quantised weights: they are expanded in advance")
    return found


@pytest.mark.parametrize("kind", list(K_BYTES))
@pytest.mark.parametrize("seed", range(3))
def test_weights_have_the_values_of_the_gguf_library(kind, seed):
    rows = stored(kind, 48, 768, seed)
    found, expected = quantization.from_rows(kind, torch.from_numpy(rows)).values(), values_of(kind, rows)
    assert isinstance(quantization.from_rows(kind, torch.from_numpy(rows)), KQuantized)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("kind", list(K_BYTES))
def test_rounded_weights_are_near_the_weights(kind):
    """What holds for these files then holds for real ones: the quantiser of the tests is a plain but sound one."""
    weights = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    error = np.linalg.norm(gguf.dequantize(k_blocks.quantize(weights, Q[kind]), Q[kind]) - weights)
    assert error < {"Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.025}[kind] * np.linalg.norm(weights)


def pair(fast, sources, inputs, *, bias=False):
    """A map in the form that keeps the types of its sources, and the same map on weights expanded in advance."""
    parts, weights = [], []
    for seed, (kind, outputs) in enumerate(sources):
        rows = None if kind is None else stored(kind, outputs, inputs, seed)
        matrix = None if rows is None else quantization.from_rows(kind, torch.from_numpy(rows))
        parts.append(quantization.Part(outputs, matrix))
        weights.append(torch.randn(outputs, inputs) if rows is None else values_of(kind, rows))
    total = sum(part.outputs for part in parts)
    plain = Linear(inputs, total, bias=bias, dtype=torch.bfloat16, device=torch.device("cpu"))
    plain.weight.copy_(torch.cat(weights))
    if bias:
        plain.bias.copy_(torch.randn(total))
    expected = next(fast.packed(plain))()
    plain.group_quantized = quantization.fused(parts)
    found = next(fast.packed(plain))()
    assert isinstance(found, DequantLinear) and not isinstance(expected, DequantLinear)
    found.rule = expected.rule = RowRule(1, 512)
    return found, expected


@pytest.mark.parametrize("kind", list(K_BYTES))
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 256), (96, 768), (64, 2048)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_have_the_bits_of_weights_expanded_in_advance(fast, kind, outputs, inputs, bias):
    found, expected = pair(fast, [(kind, outputs)], inputs, bias=bias)
    in_file = K_BYTES[kind] / 256
    assert in_file < found.stored_bytes / (outputs * inputs) < 1.03 * in_file
    x = torch.randn(100, inputs).bfloat16()
    for count in COUNTS:
        assert torch.equal(found(x[:count]), expected(x[:count])), count
    assert find_row_rule(found, x, found.min_multiple) == RowRule(1, 512)


@pytest.mark.parametrize("types", list(FUSED))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_fused_map_keeps_the_type_of_every_source(fast, types, bias, threads):
    found, expected = pair(fast, FUSED[types], 512, bias=bias)
    assert found.name == f"native C, {types} to bf16"
    x, before = torch.randn(100, 512).bfloat16(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in COUNTS:
            assert torch.equal(found(x[:count]), expected(x[:count])), count
    finally:
        torch.set_num_threads(before)


def test_sources_whose_outputs_are_no_whole_panels_are_expanded_in_advance(fast):
    plain = Linear(256, 64, bias=False, dtype=torch.bfloat16, device=torch.device("cpu"))
    parts = [(kind, torch.from_numpy(stored(kind, 48 - 32 * n, 256))) for n, kind in enumerate(("Q4_K", "Q6_K"))]
    plain.group_quantized = quantization.fused(
        [quantization.Part(len(rows), quantization.from_rows(kind, rows)) for kind, rows in parts]
    )
    assert not isinstance(next(fast.packed(plain))(), DequantLinear)


@pytest.mark.parametrize("types", [*K_BYTES, "Q4_K/Q6_K", "Q5_K/Q8_0/Q4_K", "Q5_0/Q8_0"])
@pytest.mark.parametrize("bias", [False, True])
def test_runs_in_int8_multiply_the_codes_of_the_file(fast, types, bias):
    """In the bits of the reference implementation, for any number of rows."""
    kinds = types.split("/")
    rows = [k_blocks.quantize(_weights(64, 512, seed), Q[kind]) for seed, kind in enumerate(kinds)]
    plain = Linear(512, 64 * len(kinds), bias=bias, dtype=torch.bfloat16, device=torch.device("cpu"))
    plain.weight.copy_(torch.cat([values_of(kind, own) for kind, own in zip(kinds, rows, strict=True)]))
    if bias:
        plain.bias.copy_(torch.randn(64 * len(kinds)))
    matrices = [quantization.from_rows(kind, torch.from_numpy(own)) for kind, own in zip(kinds, rows, strict=True)]
    plain.group_quantized = quantization.fused([quantization.Part(64, matrix) for matrix in matrices])
    own, slow = (make() for make in fast.quantised(plain))
    assert type(slow) is GroupedLinear and isinstance(own, GroupedLinear)
    assert own.stored_bytes <= 1.03 * sum(matrix.raw.nbytes for matrix in matrices)
    x = torch.randn(40, 512).bfloat16()
    whole, expected = slow(x), plain(x)
    assert (whole - expected).float().norm() < 0.01 * expected.float().norm()
    for count in (1, 2, 3, 5, 7, 8, 9, 17, 33, 40):
        assert torch.equal(own(x[:count]), whole[:count]), count


@pytest.mark.parametrize("kind", list(K_BYTES))
def test_any_valid_bytes_are_multiplied_as_by_the_reference(fast, kind):
    """Units of both signs, subnormal and zero ones, and scales that fp16 cannot hold."""
    rows = torch.from_numpy(stored(kind, 64, 512))
    at = 208 if kind == "Q6_K" else 0
    rows[:3, at : at + 2] = torch.tensor([60000.0]).half().view(torch.uint8)
    plain = Linear(512, 64, bias=False, dtype=torch.bfloat16, device=torch.device("cpu"))
    plain.group_quantized = quantization.from_rows(kind, rows)
    x = torch.randn(20, 512).bfloat16()
    own, slow = (make()(x) for make in fast.quantised(plain))
    assert torch.equal(own, slow) and slow.isfinite().all()


def test_a_map_with_a_part_that_is_not_quantised_is_quantised_as_a_whole(fast):
    plain = Linear(512, 128, bias=False, dtype=torch.bfloat16, device=torch.device("cpu"))
    plain.weight.copy_(torch.randn(128, 512))
    plain.group_quantized = quantization.fused([quantization.Part(64, None), quantization.Part(64, _some(64))])
    assert all(isinstance(make(), Int8Linear) for make in fast.quantised(plain))


def _some(outputs):
    return quantization.from_rows("Q4_K", torch.from_numpy(stored("Q4_K", outputs, 512)))


def _weights(outputs, inputs, seed):
    return np.random.default_rng(seed).standard_normal((outputs, inputs)).astype(np.float32)


@pytest.fixture(scope="module", name="file")
def _file(tmp_path_factory):
    """A file with the mixture of types of a Q4_K_M file, and one source each that stays plain or has another type."""
    weights = tiny_gguf.tensors(hidden=256, inner=512)
    types = {name: Q.Q4_K for name, values in weights.items() if values.ndim == 2}
    types |= {f"blk.0.{part}.weight": Q.Q6_K for part in ("attn_v", "ffn_down")} | {"token_embd.weight": Q.Q6_K}
    types |= {"blk.0.attn_output.weight": Q.Q5_0, "blk.1.attn_output.weight": Q.Q5_1}
    types |= {"blk.1.attn_k.weight": Q.Q5_K, "blk.1.attn_v.weight": Q.F16, "blk.1.ffn_up.weight": Q.Q8_0}
    shape = {"embedding_length": 256, "feed_forward_length": 512, "rope__dimension_count": 64}
    return tiny_gguf.save(tmp_path_factory.mktemp("k") / "toy-Q4_K_M.gguf", weights, types, **shape)


def test_a_file_keeps_the_types_of_its_weights(file):
    decoder = hub.load(str(file), dtype=torch.bfloat16).decoder
    kept = {name: linear.group_quantized.type for name, linear in decoder.linears().items()}
    assert sorted(kept.values()) == sorted(
        ["Q4_K/Q6_K", "Q5_0", "Q4_K", "Q6_K", "Q4_K/Q5_K/plain", "Q5_1", "Q4_K/Q8_0", "Q4_K", "Q6_K"]
    )
    for linear in decoder.linears().values():
        if isinstance(linear.group_quantized, KQuantized):
            assert torch.equal(linear.group_quantized.values().bfloat16(), linear.weight)


@pytest.mark.parametrize("tiles", [True, False])
def test_a_whole_pass_has_the_bits_of_expanded_weights(fast, file, tiles):
    """In one native call and in separate ones, against weights expanded in advance."""
    use_amx = ctypes.c_int.in_dll(fast.library, "use_amx")
    if tiles and not use_amx.value:
        pytest.skip("this processor has no tiles")
    if not tiles:
        use_amx.value = 0
    try:
        checkpoints = [hub.load(str(file), dtype=torch.bfloat16) for _ in range(2)]
        for linear in checkpoints[1].decoder.linears().values():
            linear.group_quantized = None
        packed, expanded = (prepare.prepare(made.decoder, low_precision_drafts=False) for made in checkpoints)
        assert all(isinstance(linear, DequantLinear) for linear in packed.decoder.linears().values())
        assert native_runner.supported(packed.decoder, packed.kernels, packed.attention)
        logits = []
        for runner in (packed, packed.eager(), expanded):
            tables = runner.new_tables()
            pieces = [tiny.ar(runner, torch.arange(40)[None], tables)]
            tables[0].commit(40)
            for count in (1, 5, 17):
                pieces.append(tiny.ar(runner, torch.arange(count)[None] + 7, tables))
            logits.append(torch.cat(pieces, dim=1))
        assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    finally:
        fast.library.has_amx()
