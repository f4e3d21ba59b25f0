"""Law 7: the Triton kernels equal the reference implementation. Runs in Triton's interpreter, without a GPU."""

from __future__ import annotations

import pytest
import tiny
import torch

from orthrus.backends.interface import MAX_ROWS, AttentionChoice, RowRule
from orthrus.backends.select import masked
from orthrus.backends.torch import TorchKernels
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.model.linear import Linear
from orthrus.runner.runner import Runner

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for CUDA, and with the extra `dev`")
from orthrus.backends.triton import kernels as gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, tests/gpu runs them compiled")

TOLERANCES = {"fp32": {"atol": 2e-5, "rtol": 2e-5}, "bf16": {"atol": 0.03, "rtol": 0.02}}
TRITON, REFERENCE = gpu.TritonKernels(), TorchKernels()


@pytest.fixture(params=list(tiny.DTYPES), name="precision")
def _precision(request):
    return request.param


def values(*shape, precision):
    return torch.randn(shape).to(tiny.DTYPES[precision])


@pytest.mark.parametrize("size", [16, 576, 37])
def test_norm_and_gate_equal_the_reference(precision, size):
    x, delta, weight = (values(*shape, precision=precision) for shape in ((5, size), (5, size), (size,)))
    ours, theirs = x.clone(), x.clone()
    (_, normed), (_, expected) = (
        TRITON.add_norm(ours, delta, weight, 1e-5),
        REFERENCE.add_norm(theirs, delta, weight, 1e-5),
    )
    torch.testing.assert_close(ours, theirs, **TOLERANCES[precision])
    torch.testing.assert_close(normed, expected, **TOLERANCES[precision])
    torch.testing.assert_close(TRITON.norm(x, weight, 1e-5), REFERENCE.norm(x, weight, 1e-5), **TOLERANCES[precision])
    both = values(5, 2 * size, precision=precision)
    torch.testing.assert_close(TRITON.gate(both), REFERENCE.gate(both), **TOLERANCES[precision])


@pytest.mark.parametrize("bias", [False, True])
def test_the_int8_linear_map_equals_the_reference_exactly(precision, bias):
    plain = Linear(64, 48, bias=bias, dtype=tiny.DTYPES[precision], device=torch.device("cpu"))
    plain.weight.copy_(torch.randn(48, 64) / 8)
    if bias:
        plain.bias.copy_(torch.randn(48))
    fast, slow = (make() for make in TRITON.quantised(plain))
    x = values(40, 64, precision=precision)
    for count in (1, 7, 33, 40):
        assert torch.equal(fast(x[:count]), slow(x)[:count])


@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_map_in_tiles_equals_the_reference_in_any_company(bias):
    """In fp16: the interpreter computes bf16 products as integers. There is no form for fp32."""
    plain = Linear(72, 40, bias=bias, dtype=torch.float16, device=torch.device("cpu"))
    plain.weight.copy_(torch.randn(40, 72) / 8)
    if bias:
        plain.bias.copy_(torch.randn(40))
    linear, x = gpu.TileLinear(plain), torch.randn(37, 72).half()
    assert next(TRITON.packed(plain)).func is gpu.TileLinear
    y = linear(x)
    torch.testing.assert_close(y.float(), torch.nn.functional.linear(*(t.float() for t in (x, plain.weight)),
                               plain.bias.float() if bias else None), atol=2e-3, rtol=2e-3)  # fmt: skip
    for rows in (slice(0, 1), slice(3, 20), slice(36, 37)):
        assert torch.equal(linear(x[rows]), y[rows])
    with pytest.raises(RuntimeError, match="no matrix instructions"):
        gpu.TileLinear(Linear(72, 40, bias=bias, dtype=torch.float32, device=torch.device("cpu")))


@pytest.mark.parametrize("with_norms", [True, False])
def test_rope_and_cache_write_equal_the_reference(precision, with_norms):
    H, G, E, N = 4, 2, 16, 5
    qkv = values(N, (H + 2 * G) * E, precision=precision)
    norms = (values(E, precision=precision), values(E, precision=precision)) if with_norms else None
    angles = torch.rand(N, 1, E // 2)
    cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    table = torch.tensor([[0, 2, 3, 4, 7], [9, 4, 32, 33, 62]])
    mapping = SlotMapping(table, cos, sin, (2, 4), 1e-6)
    outcomes = []
    for kernels in (TRITON, REFERENCE):
        keys, cached_values = (torch.zeros(2, G, 64, E, dtype=qkv.dtype)[1] for _ in range(2))  # a layer of a cache
        outcomes.append((kernels.rope_and_cache_write(qkv, norms, mapping, keys, cached_values), keys, cached_values))
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCES[precision])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter computes bf16 products as integers
@pytest.mark.parametrize(("heads", "kv_heads", "size", "rows"), [(4, 2, 16, 5), (9, 3, 64, 12), (2, 2, 32, 70)])
def test_ragged_attention_equals_dense_attention(dtype, heads, kv_heads, size, rows):
    """AR rows of two sequences and one block. The last case has too many rows to split its chunks over programs."""
    T, tables = 768, torch.tensor([[4, 0, 5], [2, 6, 1]])
    q = torch.randn(rows + 6, heads, size).to(dtype)
    keys, cached_values = (torch.randn(2, kv_heads, T, size).to(dtype) for _ in range(2))
    segments = [[0, rows, 0, 0, 0], [rows, 2, 1, 0, 0], [rows + 2, 4, 1, 600, 604]]
    kv_lens = [*range(300 + rows, 300, -1), 2, 1, *[517] * 4]
    paged = [tiny.in_pages(stored, tables) for stored in (keys, cached_values)]
    output = TRITON.attend(q, *paged, AttentionMetadata(torch.tensor(segments), torch.tensor(kv_lens), tables, rows))
    attended = torch.arange(T)[None] < torch.tensor(kv_lens)[:, None]
    attended[rows + 2 :, 600:604] = True
    sequences = torch.tensor([0] * rows + [1] * 6)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None].float(),
        keys[sequences].float(),
        cached_values[sequences].float(),
        attended[:, None, None],
        enable_gqa=True,
    )
    torch.testing.assert_close(
        output.float(), expected.flatten(1), atol=2e-5 if dtype == torch.float32 else 4e-3, rtol=1e-3
    )
    alone = TRITON.attend(
        q[rows + 2 :],
        *paged,
        AttentionMetadata(torch.tensor([[0, 4, 1, 600, 604]]), torch.tensor([517] * 4), tables, 4),
    )
    assert torch.equal(alone, output[rows + 2 :])


@torch.inference_mode()
def test_a_pass_of_both_views_equals_the_reference():
    """Without the attention probe, which takes an hour in the interpreter."""
    rule = RowRule(1, MAX_ROWS)
    rows, outcomes = [[5, 6, 7], [9]], []
    for kernels in (TRITON, None):
        decoder, attention = (
            tiny.decoder("qwen3"),
            AttentionChoice(masked(TRITON), rule, 64, single_row=True, ragged=True),
        )
        runner = Runner(decoder) if kernels is None else Runner(decoder, TRITON, attention)
        tables = runner.new_tables(2, 64)
        generator = torch.Generator().manual_seed(0)
        for table, length in zip(tables, (20, 3), strict=True):
            table.reserve(64)
            table.commit(length)
            for stored in (table.cache.keys, table.cache.values):
                slots = table.slots(0, length)
                stored[:, :, slots] = torch.randn(stored[:, :, slots].shape, generator=generator)
        outcomes.append(runner.ar_and_diffuse(rows, [(0, 2), (0,)], 3, tables))
    for ours, theirs in zip(*(logits + blocks for logits, blocks, _ in outcomes), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
