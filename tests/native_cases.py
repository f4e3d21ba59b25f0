"""Images of calls of every family of kernels, on random values: see `native_image`."""

from __future__ import annotations

import ctypes
from functools import partial

import gguf
import k_blocks
import torch
from native_image import NULL, Image, Place

from orthrus.backends.native import linears, packing, structs
from orthrus.gumbel import LOUD_BITS
from orthrus.quantization import BYTES, GROUP, GroupQuantized, from_rows

OUTPUTS, INPUTS, SIZE, HEADS, KV_HEADS = 64, 256, 64, 6, 2
ROWS = (1, 2, 5, 7)


def image(dtype: torch.dtype) -> Image:
    """One image with all calls."""
    torch.manual_seed(0)
    made = Image()
    random = partial(_random, made, dtype)
    _elementwise(made, random, dtype)
    _attention(made, random, dtype)
    _linear(made, dtype)
    _draft_tree(made, random)
    if dtype == torch.bfloat16:
        _dequant(made, dtype)
    return made


def _random(made: Image, dtype: torch.dtype, *shape: int) -> Place:
    return made.put(torch.randn(*shape).to(dtype))


def _elementwise(made: Image, random: partial[Place], dtype: torch.dtype) -> None:
    for size in (INPUTS, 37):
        out = made.empty((5, size), dtype, f"norm {size}")
        made.call("rms_norm", random(5, size), random(5, size), random(size), out, 5, size, 1e-5, 0.5)
        for name in ("silu_mul", "gelu_mul"):
            made.call(name, random(3, 2 * size), made.empty((3, size), dtype, f"{name} {size}"), 3, size)


def _attention(made: Image, random: partial[Place], dtype: torch.dtype) -> None:
    rows, slots = 7, 768
    cache = made.struct(
        structs.KVCache(random(KV_HEADS, slots, SIZE), random(KV_HEADS, slots, SIZE), KV_HEADS, SIZE, slots * SIZE)
    )
    angles = torch.rand(rows, SIZE) * 6
    rope = structs.RopeParams(
        random(SIZE), random(SIZE), made.put(angles.cos()), made.put(angles.sin()), None, 1e-6, 0.25
    )
    mapping = made.put(torch.stack((torch.arange(rows), torch.arange(300, 300 + rows))))
    q = made.empty((rows, HEADS, SIZE), dtype, "q")
    qkv = random(rows, (HEADS + 2 * KV_HEADS) * SIZE)
    made.call("rope_and_cache_write", qkv, q, HEADS, made.struct(rope), mapping, cache, rows)
    tree = (
        made.put(torch.tensor([-1, -1, 0, 0, 1, 1, 1])),
        made.put(torch.tensor([[301, 301, 303], [301, 302, 304]])),
        3,
    )
    for name, count, paths in (("chain", rows, (None, None, 0)), ("one row", 1, (None, None, 0)), ("tree", rows, tree)):
        segments, tables = made.put(torch.tensor([[0, count, 0, 0, 0]])), made.put(torch.tensor([[0, 1, 2]]))
        lens = [301, 301, 303, 303, 303, 303, 303] if name == "tree" else range(298, 298 + count)
        metadata = structs.AttentionMetadata(
            segments,
            1,
            made.put(torch.tensor(list(lens))),
            tables,
            3,
            None,
            0.0,
            4.0 if name == "chain" else 0.0,
            *paths,
        )
        out = made.empty((count, HEADS, SIZE), dtype, f"attention {name}")
        made.call("attention", q, out, HEADS, cache, made.struct(metadata), 1)


def _weights(made: Image, packed: Place, dtype: torch.dtype, form: int) -> Place:
    bias = made.put(torch.randn(OUTPUTS).to(dtype))
    return made.struct(structs.LinearWeights(packed, bias, None, None, None, INPUTS, OUTPUTS, form))


def _packed_codes(made: Image, groups: GroupQuantized) -> Place:
    """The place of groups that are packed by the call, in the order of the level that runs it."""
    code_bytes, mins = GROUP * groups.bits // 8, groups.bits == 4 or groups.stores_mins
    codes, layout = made.put(groups.raw) + groups.raw.shape[-1] - code_bytes, packing.LAYOUTS.index("codes")
    shape = OUTPUTS, INPUTS // GROUP, groups.raw.shape[-1], groups.bits, layout
    stored = structs.StoredGroups(codes, made.put(groups.scales), made.put(groups.mins) if mins else None, *shape)
    packed = made.empty(groups.packed_for_codes().shape, torch.uint8, f"groups of {groups.type}")
    made.call("pack_groups", made.struct(stored), packed, 1)
    return packed


def _quantized(made: Image, rows: int) -> Place:
    room = made.empty((rows, INPUTS), torch.uint8), made.empty((rows,), torch.float32)
    return made.struct(structs.QuantizedRows(*room, made.empty((rows, INPUTS // 32, 4), torch.float32)))


def _linear(made: Image, dtype: torch.dtype) -> None:
    """The same rows in calls of several sizes: results are sliced from one input."""
    weight = torch.randn(OUTPUTS, INPUTS) / 16
    x = torch.randn(max(ROWS), INPUTS).to(dtype)
    plain = (
        linears.TiledLinear.pack(weight.to(dtype), 8)
        if dtype == torch.bfloat16
        else linears.PanelLinear.pack(weight, 1)
    )
    codes, scales = made.empty((OUTPUTS, INPUTS), torch.int8, "codes"), made.empty((OUTPUTS,), torch.float32, "scales")
    shifts = made.empty((OUTPUTS,), torch.int32)
    made.call("pack_int8", made.put(weight.to(dtype)), codes, scales, shifts, OUTPUTS, INPUTS, 1)
    int8 = made.struct(structs.LinearWeights(codes, None, scales, shifts, None, INPUTS, OUTPUTS, linears.INT8))
    maps = {
        "linear": _weights(made, made.put(plain), dtype, linears.PLAIN),
        "linear_int8": int8,
    }
    for kind in ("Q4_1", "Q5_0", "Q8_0"):
        rows_of_bytes = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
        packed = _packed_codes(
            made, GroupQuantized(kind, torch.from_numpy(rows_of_bytes).unflatten(1, (-1, BYTES[kind])))
        )
        maps[f"{kind} by int8"] = _weights(made, packed, dtype, linears.FORMATS[kind] + linears.BY_INT8)
    for name, own in maps.items():
        for rows in ROWS:
            out = made.empty((rows, OUTPUTS), dtype, f"{name} {rows}")
            scratch = () if name == "linear" else (_quantized(made, rows),)
            function = "linear_codes" if name.endswith("by int8") else name
            made.call(function, made.put(x[:rows]), own, out, rows, *scratch, 1)


def _dequant(made: Image, dtype: torch.dtype) -> None:
    x = torch.randn(max(ROWS), INPUTS).to(dtype)
    for kind, form in linears.FORMATS.items():
        if kind == "Q4_0":
            continue  # the format of Q4_1
        weight = torch.randn(OUTPUTS, INPUTS).numpy() / 16
        rows_of_bytes = k_blocks.quantize(weight, gguf.GGMLQuantizationType[kind])
        quantized = from_rows(kind, torch.from_numpy(rows_of_bytes))
        own = _weights(made, made.put(quantized.packed_for_dots()), dtype, form)
        for rows in ROWS:
            out = made.empty((rows, OUTPUTS), dtype, f"{kind} {rows}")
            scratch = made.empty((32 * INPUTS + 4 * 512,), dtype)
            made.call("linear_dequant", made.put(x[:rows]), own, out, rows, scratch, 1)


def _draft_tree(made: Image, random: partial[Place]) -> None:
    vocabulary, nodes = 500, 8
    over = made.put(torch.ones(3))
    text = made.put(torch.tensor([3, 7, 5, 9, 3, 7, 6, 9, 3], dtype=torch.int32))
    evidence = made.put(torch.tensor([[0.5, -0.1, -0.3, 0.9]] * 16))
    numbers = 0.8, -0.4, 0.3, 2.0, -20.0, -1e-4, 1e-4
    context = made.struct(structs.DraftContext(text, 9, evidence, 0, *numbers))
    block = structs.DraftBlock(random(3, vocabulary), None, over, 3, vocabulary, 0, -1, nodes, 0, context)
    tokens, parents, looked_up = (
        made.empty((nodes,), torch.int64, name) for name in ("tokens", "parents", "looked up")
    )
    found = structs.DraftNodes(tokens, parents, made.empty((nodes,), torch.float32, "confidence"), looked_up)
    made.call("draft_tree", made.struct(block), NULL, made.struct(found), 1)
    stream = structs.NoiseStream((ctypes.c_uint64 * 2)(5, 6), (ctypes.c_uint64 * 2)(7, 8))
    found, own = made.empty((64,), torch.int32, "loud"), made.empty((64,), torch.float32, "loud noise")
    states = made.empty((16,), torch.int64, "states")
    made.call(
        "find_loud",
        made.struct(stream),
        3,
        vocabulary,
        LOUD_BITS,
        made.struct(structs.LoudTokens(found, own, states, 64)),
    )
    loud = made.put(torch.tensor([3, 77, 410], dtype=torch.int32)), made.put(torch.tensor([5.5, 6.0, 7.25])), states
    rows = made.structs((structs.LoudTokens * 3)(*[structs.LoudTokens(*loud, 3)] * 3))
    noise = made.struct(structs.RowNoise(stream, 3, 0.8, 2.0, rows))
    made.call("noisy_rows", made.struct(block), noise, made.empty((3, vocabulary), torch.float32, "scores"), 1)
    made.call("largest_sum", made.struct(block), noise, made.empty((2,), torch.float32, "sums"))
