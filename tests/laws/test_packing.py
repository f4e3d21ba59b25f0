"""Packing in C gives the bytes of the reference implementations in Python."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tiny
import torch

from orthrus.backends.linears import Int8Linear
from orthrus.backends.native import kernels as native
from orthrus.backends.native.packing import LAYOUTS, Packer
from orthrus.file_cache import cache_directory
from orthrus.model.linear import Linear
from orthrus.quantization import BYTES, TYPES, GroupQuantized, from_rows


@pytest.fixture(name="packer", params=list(tiny.DTYPES))
def _packer(request):
    made = native.load(tiny.DTYPES[request.param], cache_directory())
    if made is None:
        pytest.skip("no native kernels")
    return Packer(made.library), tiny.DTYPES[request.param]


def random_groups(kind, outputs, groups):
    raw = torch.randint(0, 256, (outputs, groups, BYTES[kind]), dtype=torch.uint8)
    raw[..., :4] = torch.randn(outputs, groups, 2).half().view(torch.uint8)
    return GroupQuantized(kind, raw)


@pytest.mark.parametrize("shape", [(32, 1), (64, 3), (160, 18)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", list(BYTES))
def test_groups_are_packed_as_the_reference_packs_them(packer, kind, layout, shape):
    quantized = random_groups(kind, *shape)
    found, reference = packer[0].pack_groups(quantized, layout), getattr(quantized, f"packed_for_{layout}")
    orders = [{"interleave": inputs, "shift": shift} for inputs in (4, 8) for shift in (0, 128)]
    lanes = [{"paired": paired} for paired in (False, True)]
    options = {"tiles": [{}], "dots": lanes, "codes": orders}[layout]
    expected = [reference(**own) for own in options]
    assert found.shape == expected[0].shape and any(torch.equal(found, own) for own in expected)


def test_int8_weights_are_quantised_and_packed_as_the_reference_does(packer):
    library, dtype = packer
    plain = Linear(96, 48, bias=False, dtype=dtype, device=torch.device("cpu"))
    with torch.no_grad():
        plain.weight.copy_(torch.randn(48, 96) * torch.logspace(-4, 3, 48)[:, None])
        plain.weight[5] = 0
    reference = Int8Linear(plain)
    codes, scales, shifts = library.pack_int8(plain.weight)
    stored_OI = reference._weight_IO.T
    assert torch.equal(scales, reference.scales_O)
    orders = [codes.unflatten(1, (-1, 16, inputs)).transpose(1, 2).reshape(48, 96).double() for inputs in (4, 8)]
    assert any(torch.equal(order, stored_OI) for order in orders)  # the inputs of an output that lie together
    total = stored_OI.sum(dim=1).int()
    assert any(torch.equal(shifts, shift * total) for shift in (0, 128))  # around which number the kernels read codes


@pytest.mark.parametrize("kind", TYPES)
def test_the_values_of_groups_are_those_of_the_gguf_library(kind):
    number = gguf.GGMLQuantizationType[kind]
    size, stored_bytes = gguf.GGML_QUANT_SIZES[number]
    rows = torch.randint(0, 256, (8, 3 * stored_bytes), dtype=torch.uint8)
    groups = rows.unflatten(1, (3, stored_bytes))
    units = torch.randn(8, 3, 2).half().view(torch.uint8)
    if kind == "Q6_K":
        groups[..., -2:] = units[..., :2]
    else:
        groups[..., :4] = units
    expected = torch.from_numpy(gguf.dequantize(np.asarray(rows), number))
    assert expected.shape == (8, 3 * size)
    assert torch.equal(from_rows(kind, rows).values(), expected)
