"""Which maps are multiplied by int8 activations where nothing is asked: those whose codes a GGUF file stores, and no
others, in plain and in drafting passes."""

from __future__ import annotations

import gguf
import pytest
import tiny
import tiny_gguf
import torch

import orthrus
from orthrus.backends.native import kernels as native
from orthrus.checkpoint import hub, initial_view
from orthrus.file_cache import cache_directory
from orthrus.runner import prepare

FLOAT = "blk.1.ffn_down.weight"
"""A tensor that the file stores in fp32."""
BY_INT8 = "native C, groups by int8"


@pytest.fixture(name="file", scope="module")
def _file(tmp_path_factory):
    if native.load(torch.bfloat16, cache_directory()) is None:
        pytest.skip("there are no C kernels: everything is computed in bfloat16")
    weights = tiny_gguf.tensors()
    types = {name: gguf.GGMLQuantizationType.Q5_0 for name, values in weights.items() if values.ndim == 2}
    return tiny_gguf.save(tmp_path_factory.mktemp("default") / "model.gguf", weights, types | {FLOAT: None})


def kernels_of(runner):
    """The kernel of each map of the backbone."""
    return {name: linear.name for name, linear in runner.decoder.linears().items() if ".diffusion." not in name}


@pytest.mark.parametrize("cache", [False, True])
def test_codes_of_the_file_alone_are_multiplied_by_int8_activations(file, cache):
    for _ in range(2 if cache else 1):  # packed, and read back
        kernels = kernels_of(orthrus.load(file, cache=cache).runner)
        (stored_in_fp32,) = (name for name, kernel in kernels.items() if kernel != BY_INT8)
        assert stored_in_fp32 == "layers.1.mlp.down"
        assert "int8" not in kernels[stored_in_fp32]


@pytest.mark.parametrize(
    ("options", "shares"), [({"quantize": "none"}, (False, False)), ({"dtype": "float32"}, (False, False)),
                            ({"quantize": "int8"}, (True, True))]
)  # fmt: skip
def test_an_option_decides_for_all_maps(file, options, shares):
    kernels = kernels_of(orthrus.load(file, cache=False, **options).runner)
    assert ("int8" in kernels.pop("layers.1.mlp.down"), all("int8" in k for k in kernels.values())) == shares
    assert any("int8" in kernel for kernel in kernels.values()) == shares[1]


def test_maps_that_multiply_codes_have_no_copies_for_drafting(file):
    made = {}
    for int8 in (None, False):
        checkpoint = hub.load(str(file), dtype=torch.bfloat16)
        initial_view.give_view(checkpoint, 4, tiny.MASK, last_row=False)
        made[int8] = prepare.prepare(checkpoint.decoder, int8=int8)
    copied = [[copies is not None for copies in made[int8].draft_weights.mlps] for int8 in (None, False)]
    assert copied == [[False, False], [True, True]]
    assert [made[int8].draft_weights.head is not None for int8 in (None, False)] == [False, True]
    tokens = torch.randint(0, 200, (1, 40), generator=torch.Generator().manual_seed(1))
    logits = [tiny.ar(made[int8], tokens, made[int8].new_tables()) for int8 in (None, False)]
    assert not torch.equal(*logits)
    assert torch.allclose(*logits, atol=0.1, rtol=0.1)
