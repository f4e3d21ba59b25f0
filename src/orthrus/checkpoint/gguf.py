"""GGUF files under Hugging Face tensor names. Matrices quantised in groups stay packed; other types are dequantised."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthrus.checkpoint import gguf_architectures, validation
from orthrus.checkpoint.gguf_architectures import hf_name, stacked_names
from orthrus.checkpoint.gguf_header import ArrayLength, Header, TensorInfo, read_header
from orthrus.checkpoint.tensors import digest_of
from orthrus.checkpoint.validation import as_value_errors, refuse, short_repr
from orthrus.file_cache import cached_digest
from orthrus.model import families
from orthrus.quantization import TYPES, StoredMatrix, from_rows

DTYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip
"""GGML types that are numpy dtypes; tensors of all other types are mapped as bytes."""

METADATA = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size",
    "rope.freq_base_swa": "rope_theta", "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window", "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "expert_weights_norm": "norm_topk_prob",
    "expert_feed_forward_length": "moe_intermediate_size", "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}  # fmt: skip
"""Metadata keys, without the architecture prefix, and the fields of `config.json` that they become."""

ROPE_FACTORS = "rope_freqs.weight"
REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count")
RMS_EPS, LAYER_NORM_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")
REQUIRED_BY = {
    "mixtral": EXPERTS[:2],
    "qwen3moe": EXPERTS,
    "qwen2moe": (*EXPERTS, "expert_shared_feed_forward_length"),
    "gpt-oss": (*EXPERTS, "attention.sliding_window"),
    "cohere2": ("logit_scale", "attention.sliding_window"),
}
"""What files of single architectures must state besides."""
COMMON_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Name, values and bytes of a group of the types of most files: importing gguf for them takes a tenth of a start."""


@dataclass(frozen=True)
class _Stored:
    """One tensor of the file.

    Its GGML type, the offset and number of its bytes, dtype and shape of the array as stored, and the shape of its
    values.
    """

    type: str
    offset: int
    bytes: int
    dtype: str
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]

    def unstacked(self) -> list[_Stored]:
        """The parts of a tensor that stacks several."""
        count, size = self.shape[0], self.bytes // self.shape[0]
        first = replace(self, bytes=size, stored_shape=self.stored_shape[1:], shape=self.shape[1:])
        return [replace(first, offset=self.offset + index * size) for index in range(count)]

    def as_matrix(self) -> _Stored:
        """A vector as a matrix of one row; a matrix as it is."""
        if len(self.shape) > 1:
            return self
        return replace(self, shape=(1, *self.shape), stored_shape=(1, *self.stored_shape))


class GgufFile:
    """A GGUF file, dequantised on reading, under Hugging Face tensor names."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._heads: dict[str, int] = {}
        name = gguf_architectures.name_of(header.fields)
        architecture, prefix = gguf_architectures.of(name), header.fields["general.architecture"]
        self._norm_offset = architecture.norm_offset
        if architecture.permuted:
            for kind, key in {"q_proj": "head_count", "k_proj": "head_count_kv"}.items():
                self._heads[kind] = header.fields[f"{prefix}.attention.{key}"]
        self._tensors: dict[str, _Stored] = {}
        for info in header.tensors:
            if info.name == ROPE_FACTORS:
                continue
            stored = _stored(path, info, header.file_bytes)
            several = stacked_names(info.name, info.shape, name)
            named = zip(several, stored.unstacked(), strict=True) if several else [(hf_name(info.name, name), stored)]
            for ours, tensor in named:
                if ours in self._tensors:
                    both = f"{short_repr(ours)}, one of them {short_repr(info.name)}"
                    raise ValueError(f"{path}: two tensors map to {both}")
                self._tensors[ours] = tensor.as_matrix() if ours.endswith(".shared_expert_gate.weight") else tensor
        with path.open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns of read-only memory
        self._bytes = np.frombuffer(self._file, np.uint8)

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises ValueError where it is missing or has an integer type."""
        stored = self._entry(name)
        if DTYPES.get(stored.type, "").startswith("int"):
            raise ValueError(
                f"{self.path}: tensor {name} is of type {stored.type}; expected a type of weights, not integers"
            )
        return stored.shape

    def tensor(self, name: str) -> Tensor:
        """One tensor in fp32. Raises ValueError where it is missing or has a type that cannot be dequantised."""
        from gguf import GGMLQuantizationType, dequantize

        stored = self._entry(name)
        try:
            with np.errstate(all="ignore"):  # callers of this method check for NaN and infinity
                values = dequantize(self._data(stored), GGMLQuantizationType[stored.type])
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name} of type {stored.type} cannot be read ({error})") from error
        tensor = self._unpermute(name, torch.from_numpy(np.array(values, dtype=np.float32)))
        return tensor - self._norm_offset if name.endswith("norm.weight") else tensor

    def group_quantized(self, name: str) -> StoredMatrix | None:
        """One matrix as stored; None where its type is not supported in that form."""
        stored = self._entry(name)
        self._release()
        if stored.type not in TYPES or len(stored.shape) != 2:
            return None
        return from_rows(stored.type, self._unpermute(name, torch.from_numpy(np.asarray(self._data(stored)))))

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the tensors as stored, before dequantisation (cached by the `stamp` of its file)."""
        del tied_head  # a GGUF file stores a tied head once

        def parts(name: str) -> tuple[str, memoryview]:
            self._release()
            stored = self._tensors[name]
            data = self._bytes[stored.offset : stored.offset + stored.bytes].data
            return f"{stored.type}{stored.stored_shape}", data

        return cached_digest([self.path], lambda: digest_of(self.names, parts))

    def _release(self) -> None:
        """Give up the pages that were read before, which need not stay in memory."""
        self._file.madvise(mmap.MADV_DONTNEED)

    def _entry(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name]

    def _data(self, stored: _Stored) -> np.ndarray[Any, Any]:
        raw = self._bytes[stored.offset : stored.offset + stored.bytes]
        if len(raw) < stored.bytes:
            raise ValueError("the file is truncated")
        return raw.view(stored.dtype).reshape(stored.stored_shape)

    def _unpermute(self, name: str, values: Tensor) -> Tensor:
        """Undo the reordering of rotary dimensions that llama.cpp's converter applies to q and k of Llama."""
        kind = name.rpartition(".")[0].rpartition(".")[2]  # biases are reordered too
        if kind not in self._heads:
            return values
        heads, shape = self._heads[kind], values.shape
        if shape[0] % (2 * heads):
            raise ValueError(f"{self.path}: tensor {name} has {shape[0]} rows; expected a multiple of {2 * heads}")
        return values.view(heads, shape[0] // heads // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)


def rope_factors(path: Path, header: Header) -> list[float] | None:
    """The tensor by which rotary frequencies are divided; None where there is none. It belongs to the config, not to
    the weights. Raises ValueError where it is not fp32."""
    found = next((info for info in header.tensors if info.name == ROPE_FACTORS), None)
    if found is None:
        return None
    stored = _stored(path, found, header.file_bytes)
    if stored.dtype != "float32":
        raise ValueError(f"{path}: tensor {ROPE_FACTORS} is of type {stored.type}; expected F32")
    with path.open("rb") as file:
        file.seek(stored.offset)
        return [float(value) for value in np.frombuffer(file.read(stored.bytes), np.float32)]


def checked_header(path: Path) -> Header:
    """Read the header of a GGUF file and check its metadata against the ranges of a config.

    Raises ValueError naming the field.
    """
    header = read_header(path)
    fields, architecture = header.fields, header.fields.get("general.architecture")
    if not isinstance(architecture, str):
        refuse(path, "general.architecture", architecture, "a string")
    name = gguf_architectures.name_of(fields)
    known = gguf_architectures.of(name)
    with as_value_errors(str(path)):
        families.load(known.family)
    eps = LAYER_NORM_EPS if known.layer_norm else RMS_EPS
    for key in (*REQUIRED, eps, *REQUIRED_BY.get(name, ())):
        if f"{architecture}.{key}" not in fields:
            refuse(path, f"{architecture}.{key}", None, validation.BACKBONE[METADATA[key]])
    for full, value in fields.items():
        ours = METADATA.get(full.partition(".")[2], "")  # of any architecture: transformers reads them all
        if value == 0 and ours == "sliding_window":
            continue  # there is none
        if architecture == "exaone4" and ours == "sliding_window_pattern":
            continue  # a value per layer, which is not read: llama.cpp's code has a fixed pattern
        if ours and not validation.BACKBONE[ours].accepts(value):
            refuse(path, full, value, validation.BACKBONE[ours])
    heads, kv_heads = (fields.get(f"{architecture}.attention.head_count{end}") for end in ("", "_kv"))
    if known.permuted and kv_heads is None:
        refuse(path, f"{architecture}.attention.head_count_kv", None, validation.BACKBONE["num_key_value_heads"])
    if kv_heads is not None and heads % kv_heads:
        refuse(path, f"{architecture}.attention.head_count_kv", kv_heads, f"a divisor of head_count, {heads}")
    rotary = f"{architecture}.rope.dimension_count"
    if fields.get(rotary, 0) % 2:
        refuse(path, rotary, fields[rotary], "an even number")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, ArrayLength):
        refuse(path, "tokenizer.ggml.tokens", tokens, "a list of strings")
    for kind in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        name = f"tokenizer.ggml.{kind}_token_id"
        validation.token_ids(path, name, fields.get(name), tokens.length)
    return header


def _stored(path: Path, info: TensorInfo, file_bytes: int) -> _Stored:
    """Locate the bytes of a tensor.

    Raises ValueError naming the tensor where its type is unknown, its rows do not fit the type, or the file is too
    short.
    """
    what = f"{path}: tensor {short_repr(info.name)}"
    kind = COMMON_TYPES.get(info.type) or _other_types().get(info.type)
    if kind is None:
        raise ValueError(f"{what} has the unknown type {info.type}; expected a type of GGML")
    (*rows, values), (name, group, group_bytes) = info.shape, kind
    if values % group:
        raise ValueError(f"{what} has rows of {values} values; {name} needs a multiple of {group}")
    size = prod(info.shape) // group * group_bytes
    if size > file_bytes - info.offset:
        raise ValueError(
            f"{what} of shape {list(info.shape)} needs {size} bytes from offset {info.offset}, but the file ends at"
            f" {file_bytes}; fetch the file again"
        )
    stored_shape = info.shape if name in DTYPES else (*rows, values // group * group_bytes)
    return _Stored(name, info.offset, size, DTYPES.get(name, "uint8"), stored_shape, info.shape)


@cache
def _other_types() -> dict[int, tuple[str, int, int]]:
    from gguf import GGML_QUANT_SIZES

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
