"""Law 7: every fast kernel equals its reference implementation, and keeps its bits under its row rule."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import gguf
import pytest
import tiny
import torch

from orthrus import quantization
from orthrus.backends.interface import RowRule
from orthrus.backends.invariance import find_row_rule
from orthrus.backends.linears import fused_multiply_add
from orthrus.backends.native import kernels as native
from orthrus.backends.native import linears as native_linears
from orthrus.backends.select import choose_attention, masked
from orthrus.backends.torch import TorchKernels, attend_flash, attend_in_blocks
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.config import KEY_BLOCK
from orthrus.decoder_config import ACTIVATIONS, RopeConfig
from orthrus.file_cache import cache_directory
from orthrus.masks import causal_bias
from orthrus.model.linear import Linear
from orthrus.model.ops import activate, gate
from orthrus.model.rope import RopeTable
from orthrus.runner.runner import Runner

TOLERANCES = {"fp32": {"atol": 2e-5, "rtol": 2e-5}, "bf16": {"atol": 0.03, "rtol": 0.02}}


@pytest.fixture(params=list(tiny.DTYPES), name="precision")
def _precision(request):
    return request.param


def _tiles():
    """Products by tiles and without them, on a processor that has them."""
    found = native.load(torch.bfloat16, cache_directory())
    return ["tiles", "no tiles"] if found and found.library.has_amx() else ["no tiles"]


@pytest.fixture(name="fast", params=_tiles())
def _fast(precision, request):
    found = native.load(tiny.DTYPES[precision], cache_directory())
    if found is None:
        pytest.skip("no C compiler on this machine: the torch twins run instead")
    if request.param == "no tiles":
        ctypes.c_int.in_dll(found.library, "use_amx").value = 0
    yield found
    found.library.has_amx()


def values(*shape, precision="fp32"):
    return torch.randn(shape).to(tiny.DTYPES[precision])


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [16, 64, 112, 576, 37])
def test_norm_and_gate(fast, precision, size, offset):
    x, delta, weight = (values(7, size, precision=precision) for _ in range(3))
    slow, tolerance = TorchKernels(), TOLERANCES[precision]
    torch.testing.assert_close(
        fast.norm(x, weight[0], 1e-5, offset), slow.norm(x, weight[0], 1e-5, offset), **tolerance
    )
    hidden = x.clone(), x.clone()
    normed = [k.add_norm(h, delta, weight[0], 1e-5, offset)[1] for k, h in zip((fast, slow), hidden, strict=True)]
    assert torch.equal(slow.add_norm(x.clone(), None, weight[0], 1e-5)[1], slow.norm(x, weight[0], 1e-5))
    assert torch.equal(fast.add_norm(x.clone(), None, weight[0], 1e-5)[1], fast.norm(x, weight[0], 1e-5))
    assert torch.equal(*hidden)
    torch.testing.assert_close(*normed, **tolerance)
    wide = values(7, 2 * size, precision=precision) * 10
    for activation in ACTIVATIONS:
        torch.testing.assert_close(fast.gate(wide, activation), slow.gate(wide, activation), **tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_a_row_do_not_depend_on_other_rows(activation):
    """Neither where the values of all rows are one vector loop with a tail, nor where threads divide a row."""
    wide, threads = values(13, 2 * 4864), torch.get_num_threads()
    torch.set_num_threads(3)
    together = gate(wide, activation)
    torch.set_num_threads(threads)
    assert torch.equal(together, torch.cat([gate(row, activation) for row in wide.split(1)]))
    if activation != "clamped_swiglu":  # which has gates
        rows = values(37, 176)
        alone = torch.cat([activate(row, activation) for row in rows.split(1)])
        assert torch.equal(activate(rows[:5], activation), alone[:5])
        assert torch.equal(activate(rows, activation), alone)


def test_an_activation_of_two_halves_is_no_activation_of_one_argument():
    with pytest.raises(ValueError, match="'clamped_swiglu' is no activation of one argument"):
        activate(values(2, 16), "clamped_swiglu")


@pytest.mark.parametrize("held", [(5, 5, 5), (2, 5, 1)])
@pytest.mark.parametrize("attended", [5, 8])
@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("size", [16, 64, 80])
def test_rope_and_cache_write(fast, precision, size, with_norms, attended, held):
    """Heads whose halves are less than a vector, whole vectors, and vectors with a tail."""
    B, H, G, E = len(held), 4, 2, size
    rows = torch.tensor([b * attended + 5 - row for b, count in enumerate(held) for row in range(count, 0, -1)])
    positions = [start + row for start, count in zip((4, 0, 30), held, strict=True) for row in range(count)]
    slots = rows // attended * 48 + torch.tensor(positions)
    table = torch.stack((rows, slots))
    qkv = values(len(rows) + 3, (H + 2 * G) * E, precision=precision)  # the last three are padding
    norms = (values(E, precision=precision), values(E, precision=precision)) if with_norms else None
    frequencies = tuple(10000.0 ** (-2 * n / E) for n in range(E // 2))
    rope = RopeTable(RopeConfig(frequencies), torch.device("cpu")).rows(torch.tensor(positions) + 2, 40)
    places = SlotMapping(table, *rope, (B, attended), 1e-6, norm_offset=0.5)
    results = []
    for kernels in (fast, TorchKernels()):
        storage = torch.zeros(2, G, (B + 1) * 48, E, dtype=qkv.dtype)
        results.append((kernels.rope_and_cache_write(qkv, norms, places, *storage), storage))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCES[precision])
    assert (results[0][1][1] != 0).any(dim=-1).sum() == len(rows) * G


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (320, 64), (96, 576), (64, 1536)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_forms(precision, outputs, inputs, bias):
    plain = Linear(inputs, outputs, bias=bias, dtype=tiny.DTYPES[precision], device=torch.device("cpu"))
    plain.weight.copy_(values(outputs, inputs) / inputs**0.5)
    if bias:
        plain.bias.copy_(values(outputs))
    kernels = native.load(plain.weight.dtype, cache_directory()) or TorchKernels()
    x = values(512, inputs, precision=precision)
    made = 0
    for make in kernels.packed(plain):
        try:
            form = make()
        except RuntimeError:
            continue  # it cannot run on this machine
        made += 1
        torch.testing.assert_close(form(x[:40]), plain(x[:40]), **TOLERANCES[precision])
        form.rule = find_row_rule(form, x, form.min_multiple)
        assert form.rule.exact
        whole = form(x)
        for count in (1, 2, 3, 7, 16, 31, 33, 100):
            assert torch.equal(form(x[:count]), whole[:count]), (type(form), count)
    assert made


@pytest.mark.parametrize("kind", list(quantization.BYTES))
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (96, 576), (32, 1536)])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_kept_as_their_file_holds_them_have_the_bits_of_those_expanded_in_advance(
    fast, precision, kind, outputs, inputs, bias
):
    stored = gguf.quantize(values(outputs, inputs).numpy(), gguf.GGMLQuantizationType[kind])
    own = quantization.GroupQuantized(kind, torch.from_numpy(stored).unflatten(1, (-1, quantization.BYTES[kind])))
    assert torch.equal(own.values(), torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType[kind])))
    plain = Linear(inputs, outputs, bias=bias, dtype=tiny.DTYPES[precision], device=torch.device("cpu"))
    plain.weight.copy_(own.values())
    if bias:
        plain.bias.copy_(values(outputs))
    expected = next(fast.packed(plain))()
    plain.group_quantized = own
    found = next(fast.packed(plain))()
    if not fast.library.linear_dequant_scratch(32):
        assert type(found) is type(expected)
        pytest.skip("this processor or precision has no products of groups: weights are expanded in advance")
    assert isinstance(found, native_linears.DequantLinear) and found.stored_bytes < 0.6 * plain.weight.nbytes
    by_tiles = bool(ctypes.c_int.in_dll(fast.library, "use_amx").value)
    assert (fast.low_precision(plain) is None) == (by_tiles and own.bits == 4)
    x = values(100, inputs, precision=precision)
    expected.rule = found.rule = RowRule(1, 512)
    for count in (1, 2, 3, 4, 5, 6, 7, 16, 17, 24, 25, 31, 32, 33, 49, 100):
        assert torch.equal(found(x[:count]), expected(x[:count])), count


@pytest.mark.parametrize("kind", [*quantization.BYTES, "rounded"])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (96, 576), (32, 1536), (48, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_groups_multiplied_as_integers(fast, precision, kind, outputs, inputs, bias):
    plain = Linear(inputs, outputs, bias=bias, dtype=tiny.DTYPES[precision], device=torch.device("cpu"))
    weights = values(outputs, inputs) / inputs**0.5
    plain.group_quantized = quantization.GroupQuantized.rounded(weights)
    if kind != "rounded":
        stored = torch.from_numpy(gguf.quantize(weights.numpy(), gguf.GGMLQuantizationType[kind]))
        if kind == "Q8_0":
            stored[0, 2:34] = 128  # -128, which quantisers leave out
        plain.group_quantized = quantization.GroupQuantized(kind, stored.unflatten(1, (-1, quantization.BYTES[kind])))
    plain.weight.copy_(plain.group_quantized.values())
    if bias:
        plain.bias.copy_(values(outputs))
    x = values(100, inputs, precision=precision)
    x[3] = 0
    *others, slow = (make() for make in fast.quantised(plain))
    assert bool(others) == (outputs % 32 == 0)
    whole = slow(x)
    error = (whole - plain(x)).float().norm() / plain(x).float().norm()
    assert error < 0.01
    for form in (*others, slow):
        for count in (1, 2, 3, 5, 6, 7, 8, 9, 16, 31, 33, 100):
            assert torch.equal(form(x[:count]), whole[:count]), (type(form), count)


@pytest.mark.parametrize("sign", [1, -1])
def test_fused_multiply_adds_of_the_reference_round_once(sign):
    """The sum lies just below the middle between two numbers of fp32; in fp64 it is that middle, whose tie goes up."""
    a, b = torch.tensor([sign * (1 + 2.0**-23)]), torch.tensor([2.0**-24 * (1 - 2.0**-23)])
    c = torch.tensor([sign * (1 + 2.0**-23)])
    assert (a.double() * b.double() + c.double()).float() != c
    assert fused_multiply_add(a, b, c) == c


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (320, 64), (96, 576), (64, 1536), (30, 20)])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_forms(fast, precision, outputs, inputs, bias):
    plain = Linear(inputs, outputs, bias=bias, dtype=tiny.DTYPES[precision], device=torch.device("cpu"))
    plain.weight.copy_(values(outputs, inputs) / inputs**0.5)
    if bias:
        plain.bias.copy_(values(outputs))
    x = values(100, inputs, precision=precision)
    x[3] = 0
    *others, slow = (make() for make in fast.quantised(plain))
    whole = slow(x)
    error = (whole - plain(x)).float().norm() / plain(x).float().norm()
    assert error < 0.02
    for form in (*others, slow):
        for count in (1, 2, 3, 7, 16, 31, 33, 100):
            assert torch.equal(form(x[:count]), whole[:count]), (type(form), count)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 2, 16), (8, 8, 96)])
def test_every_row_attends_to_what_it_sees_and_to_nothing_else(fast, precision, heads, kv_heads, size, rows):
    """AR rows of two sequences and a block beside them, on both sides of a border between blocks of keys."""
    if not fast.supports_ragged_attention(size):
        pytest.skip("this processor has no ragged attention")
    T, first, tables = 768, 255, torch.tensor([[4, 0, 5], [2, 6, 1]])
    q = values(rows + 6, heads, size, precision=precision)
    keys, held = (values(2, kv_heads, T, size, precision=precision) for _ in range(2))
    seen = [*range(first + rows, first, -1), 2, 1, *[517] * 4]
    sight = AttentionMetadata(
        torch.tensor([[0, rows, 0, 0, 0], [rows, 2, 1, 0, 0], [rows + 2, 4, 1, 600, 604]]),
        torch.tensor(seen),
        tables,
        rows,
    )
    visible = torch.arange(T)[None] < torch.tensor(seen)[:, None]
    visible[rows + 2 :, 600:604] = True
    sequences = torch.tensor([0] * rows + [1] * 6)
    found = fast.attend(q, *(tiny.in_pages(stored, tables) for stored in (keys, held)), sight)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None].float(), keys[sequences].float(), held[sequences].float(), visible[:, None, None], enable_gqa=True
    )
    tolerance = 2e-5 if precision == "fp32" else 0.02
    torch.testing.assert_close(found.float(), expected.flatten(1), atol=tolerance, rtol=tolerance)
    for row, count in enumerate(seen[:rows]):
        changed = keys.clone(), held.clone()
        for tensor in changed:
            tensor[0, :, count:] = 100.0  # among them keys that the rows before see
        again = fast.attend(q, *(tiny.in_pages(stored, tables) for stored in changed), sight)
        assert torch.equal(again[row], found[row])


@pytest.mark.parametrize(
    ("window", "scale", "cap"), [(40, None, None), (300, 0.2, None), (None, 0.2, 3.0), (7, None, 2.0), (1, None, None)]
)
def test_windows_scales_and_soft_caps(fast, precision, window, scale, cap):
    """On both sides of a border between blocks of keys. No bit depends on the keys before a window."""
    heads, kv_heads, size, R, length = 4, 2, 16, 6, 509
    q = values(1, R, heads, size, precision=precision)
    k, v = (values(1, kv_heads, 2 * KEY_BLOCK, size, precision=precision) for _ in range(2))
    bias = causal_bias([length], R, R, 2 * KEY_BLOCK, q, window)
    scores = q.float().transpose(1, 2) @ k.float().repeat_interleave(2, 1).transpose(-1, -2) * (scale or size**-0.5)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    expected = (scores + bias.float()).softmax(-1) @ v.float().repeat_interleave(2, 1)
    before = k.clone(), v.clone()
    for tensor in before:
        tensor[:, :, : 0 if window is None else length + 1 - window] = 100.0
    attentions = [attend_in_blocks] if cap else [attend_in_blocks, attend_flash]
    for attend in [*attentions, *([masked(fast)] if fast.supports_ragged_attention(size) else [])]:
        found = attend(q, k, v, bias, scale, cap)
        torch.testing.assert_close(found.float(), expected.transpose(1, 2).flatten(2), **TOLERANCES[precision])
        assert torch.equal(attend(q, *before, bias, scale, cap), found)


@pytest.mark.parametrize("rows", [1, 3, 6, 16])
@pytest.mark.parametrize("size", [16, 64])
def test_attention_weights_are_rounded_to_bf16_on_every_processor(size, rows):
    """Two keys, of weights 1 and w, and values -w and 1 with the rounded w: their sum is zero, or the error of w."""
    fast = native.load(torch.bfloat16, cache_directory())
    if fast is None or not fast.supports_ragged_attention(size):
        pytest.skip("no C kernels with ragged attention on this machine: torch rounds the weights in its own way")
    bias = torch.full((1, 1, rows, KEY_BLOCK), float("-inf"), dtype=torch.bfloat16)
    bias[..., :2] = 0
    for distance in (0.5, 0.75, 1.0, 1.25, 2.0):
        q, k, v = (torch.zeros(1, count, size, dtype=torch.bfloat16) for count in (rows, KEY_BLOCK, KEY_BLOCK))
        q[..., 0], k[:, 0, 0] = size**0.5, distance
        v[:, 0], v[:, 1] = -torch.tensor(-distance).exp().to(torch.bfloat16), 1
        assert not masked(fast)(q[:, :, None], k[:, None], v[:, None], bias).any(), distance


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (9, 3, 64), (8, 8, 32), (14, 2, 64)])
def test_attention_forms(precision, heads, kv_heads, size):
    B, R, lengths = 2, 6, [700, 30]
    q = values(B, R, heads, size, precision=precision)
    k, v = (values(B, kv_heads, 2 * KEY_BLOCK, size, precision=precision) for _ in range(2))
    bias = causal_bias(lengths, R, R, 2 * KEY_BLOCK, q)
    fast, slow = attend_flash(q, k, v, bias), attend_in_blocks(q, k, v, bias)
    torch.testing.assert_close(fast, slow, **TOLERANCES[precision])
    dense = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2).float(), k.float(), v.float(), bias.float().clone(), enable_gqa=True
    )
    torch.testing.assert_close(slow.float(), dense.transpose(1, 2).flatten(2), **TOLERANCES[precision])


@pytest.mark.pairwise
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 2, 16), (9, 3, 64), (16, 8, 128), (8, 8, 32), (14, 2, 64), (6, 2, 96)]
)
def test_chosen_attention_gives_a_row_the_same_bits_however_many_it_is_among(
    fast, precision, heads, kv_heads, size, own
):
    """On other values than the probe's, more of them: what differs on few values only must not have been chosen."""
    kernels = fast if own else TorchKernels()
    config = replace(tiny.decoder("llama").config, heads=heads, kv_heads=kv_heads, head_dim=size, ropes=())
    choice = choose_attention(config, tiny.DTYPES[precision], torch.device("cpu"), kernels)
    assert choice.rule.exact
    q, spans = values(1, 64, heads, size, precision=precision), 1536
    k, v = (values(1, kv_heads, spans, size, precision=precision) for _ in range(2))
    for visible in (5, 129, 400, 511, 513, 516, 530, 1000, 1025, 1300):
        seen = torch.arange(spans) < visible
        bias = torch.zeros(spans).to(q).masked_fill(~seen, float("-inf"))[None, None, None]
        whole = choice.attend(q, k, v, bias.expand(1, 1, 64, -1))
        for count in (1, 2, 3, 5, 8, 17, 31):
            padded = choice.padded(count)
            for start in range(0, 64 - count + 1, max(count, 7)):
                piece = torch.nn.functional.pad(q[:, start : start + count], (0, 0, 0, 0, 0, padded - count))
                found = choice.attend(piece, k, v, bias.expand(1, 1, padded, -1))[:, :count]
                assert torch.equal(found, whole[:, start : start + count]), (visible, count)


def test_a_block_that_is_masked_whole_changes_no_bit_of_the_slow_twin(precision):
    q, k, v = values(1, 4, 4, 16, precision=precision), *(values(1, 2, 3 * 512, 16, precision=precision) for _ in "kv")
    short = causal_bias([100], 4, 4, KEY_BLOCK, q)
    long = causal_bias([100], 4, 4, 3 * KEY_BLOCK, q)
    assert torch.equal(attend_in_blocks(q, k[:, :, :512], v[:, :, :512], short), attend_in_blocks(q, k, v, long))


def test_the_probe_finds_a_kernel_that_breaks_the_promise():
    def tail_differs(x):
        out = x * 2
        out[len(x) // 4 * 4 :] += 1e-6
        return out

    def offset_differs(x):
        return x * 2 + torch.arange(len(x))[:, None] * 1e-6

    rows = values(512, 8)
    assert find_row_rule(tail_differs, rows).multiple == 4
    assert not find_row_rule(offset_differs, rows).exact
    assert find_row_rule(lambda x: x * (2 if len(x) <= 32 else 3), rows).max_rows == 32


@pytest.mark.parametrize("tree", [False, True])
def test_a_pass_calls_attention_with_at_most_as_many_rows_as_its_rule_allows(tree):
    """Also where it verifies: beyond that number the probe found other bits, or asked no more."""
    runner = tiny.runner("gemma2", kernels="torch")
    tokens, seen = tiny.request(40).prompt, []
    parents = [[n // 2 - (n < 2) for n in range(len(tokens))]] if tree else None

    def logits(limit):
        def attend(q_BAHE, *given):
            seen.append(q_BAHE.shape[1])
            return runner.attention.attend(q_BAHE, *given)

        choice = replace(runner.attention, attend=attend, rule=replace(runner.attention.rule, max_rows=limit))
        limited = Runner(runner.decoder, runner.kernels, choice)
        return limited.ar([tokens], limited.new_tables(1, 64), parents=parents)[0]

    whole = logits(512)
    assert max(seen) > 16 or tree
    seen.clear()
    assert torch.equal(logits(16), whole)
    assert max(seen) <= 16
