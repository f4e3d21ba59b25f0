"""An embedding that stays in its file gives the rows of the expanded table, bit for bit, wherever it is read."""

from __future__ import annotations

import ctypes

import gguf
import k_blocks
import numpy as np
import pytest
import tiny
import tiny_gguf
import torch

import orthrus
from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.native import kernels as native
from orthrus.backends.native.embedding import table_of
from orthrus.backends.native.linears import DequantLinear, NativeGroupedLinear
from orthrus.backends.torch import TorchKernels
from orthrus.checkpoint import hub
from orthrus.file_cache import cache_directory
from orthrus.k_quants import K_BYTES
from orthrus.model.draft_head import DraftHead
from orthrus.model.embedding import Embedding, StoredEmbedding
from orthrus.quantization import TYPES, from_rows
from orthrus.runner.runner import bytes_of

Q = gguf.GGMLQuantizationType
V, D = 40, 256


def matrix(kind, seed=0):
    """Any valid bytes: scales of both signs, zero and subnormal ones among them."""
    rng = np.random.default_rng(seed)
    if kind in K_BYTES:
        return from_rows(kind, torch.from_numpy(k_blocks.random(rng, kind, V, D)))
    weights = rng.standard_normal((V, D)) * 2.0 ** rng.integers(-30, 4, (V, 1))
    made = from_rows(kind, torch.from_numpy(gguf.quantize(weights.astype(np.float32), Q[kind])))
    made.raw[::7, 0, 1] ^= 128  # the sign of a scale
    return made


def tables(kind, dtype):
    """The same embedding as stored and expanded."""
    stored = matrix(kind)
    return StoredEmbedding(stored, dtype), Embedding(stored.values().to(dtype))


def same_bits(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_every_type_have_the_bits_of_the_expanded_table(kind, dtype):
    stored, expanded = tables(kind, tiny.DTYPES[dtype])
    tokens = torch.tensor([[3, 0, V - 1], [7, 7, 20]])
    assert same_bits(stored(tokens), expanded(tokens)) and not [*stored.parameters()]
    kernels = native.load(tiny.DTYPES[dtype], cache_directory())
    if kernels is None:
        pytest.skip("no C compiler on this machine")
    rows = kernels.library.embedding_rows
    for table in (stored, expanded):
        ids, out = torch.arange(V), torch.empty(V, D, dtype=tiny.DTYPES[dtype])
        rows(ctypes.byref(table_of(table, D, out.dtype)), *map(ctypes.c_void_p, (ids.data_ptr(), out.data_ptr())), V)
        assert same_bits(out, expanded.weight)


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("kind", ["Q5_0", "Q6_K"])
def test_a_draft_head_reads_the_same_rows(kind, dtype):
    """In all implementations; the sum over a row is the same in each of them."""
    generator, dtype = torch.Generator().manual_seed(0), tiny.DTYPES[dtype]
    head = DraftHead(D, 32, 4, dtype, torch.device("cpu"))
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    logits, hidden = torch.randn(4, V, generator=generator), torch.randn(5, D, generator=generator).to(dtype)
    for kernels in (TorchKernels(), native.load(dtype, cache_directory())):
        if kernels is None:
            pytest.skip("no C compiler on this machine")
        stored, expanded = (
            kernels.draft_tree(logits, [1.0] * 4, 16, HeadInputs(head, embedding, hidden, 7))
            for embedding in tables(kind, dtype)
        )
        assert stored == expanded


@pytest.fixture(params=["own head", "tied head"], name="file")
def _file(request, tmp_path):
    weights = tiny_gguf.tensors()
    if request.param == "own head":
        weights["output.weight"] = tiny_gguf.tensors(seed=1)["token_embd.weight"]
    types = {name: Q.Q5_0 for name, values in weights.items() if values.ndim == 2}
    return tiny_gguf.save(tmp_path / "model.gguf", weights, types)


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"quantize": "int8"}, {"cache": False}])
def test_a_loaded_model_holds_no_expanded_embedding_and_decodes_the_same_tokens(file, options, monkeypatch):
    """Fresh, and from the cache of packed weights."""
    chosen = {"max_new_tokens": 24, "stop_token_ids": []}
    with monkeypatch.context() as patched:
        patched.setattr(hub, "leave_embedding", lambda decoder, files: None)
        expanded = orthrus.load(file, **{**options, "cache": False})
    assert type(expanded.decoder.embedding) is Embedding
    expected = expanded.generate([5, 6, 7], **chosen).tokens
    for _ in range(2):
        model = orthrus.load(file, **options)
        assert isinstance(model.decoder.embedding, StoredEmbedding)
        assert model.generate([5, 6, 7], **chosen).tokens == expected
        matrices = [name for name, parameter in model.decoder.named_parameters() if parameter.dim() == 2]
        assert not matrices


def test_a_loaded_model_holds_every_packed_tensor_once(file):
    """Its maps take no more bytes than the file, whose embedding stays where it is."""
    model = orthrus.load(file, cache=False)
    maps = model.decoder.linears().values()
    if not all(isinstance(linear, DequantLinear | NativeGroupedLinear) for linear in maps):
        pytest.skip("this processor has no products of quantised weights: they are expanded in advance")
    plain = sum(parameter.nbytes for parameter in model.decoder.parameters())
    tied = model.decoder.config.tied_head
    embedding = 0 if tied else model.decoder.embedding.stored.raw.nbytes
    assert sum(map(bytes_of, maps)) + plain + embedding < file.stat().st_size
    assert model.runner.draft_bytes == 0


def test_an_embedding_with_a_scale_that_is_not_finite_is_refused(tmp_path):
    """Of Q4_0 also one whose least value is infinite in the fp16 of its kernels."""
    weights = tiny_gguf.tensors()
    types = {"token_embd.weight": Q.Q4_0}
    path = tiny_gguf.save(tmp_path / "model.gguf", weights, types)
    at = gguf.GGUFReader(path).tensors[0].data_offset
    for scale in (float("nan"), 60000.0):
        data = bytearray(path.read_bytes())
        data[at : at + 2] = np.float16(scale).tobytes()
        broken = tmp_path / f"{scale}.gguf"
        broken.write_bytes(data)
        with pytest.raises(ValueError, match=r"tensor model\.embed_tokens\.weight"):
            orthrus.load(broken, cache=False)
