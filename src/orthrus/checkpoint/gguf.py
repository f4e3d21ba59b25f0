"""GGUF files of llama-family and Qwen models, de-quantised on reading; tensor names as Hugging Face has them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthrus.checkpoint import validation
from orthrus.checkpoint.gguf_header import ArrayOf, Header, TensorInfo, read_header
from orthrus.checkpoint.tensors import digest_of
from orthrus.checkpoint.validation import clear_errors, refuse, shown
from orthrus.file_cache import cached_digest
from orthrus.model import families
from orthrus.quantization import BYTES, Blocks

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
DTYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
}  # fmt: skip
"""Types whose values numpy has; of all others it sees bytes."""

METADATA = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size",
}  # fmt: skip
"""The metadata that becomes a config, after the name of the architecture, and its fields of `config.json`."""

OPTIONAL = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count", "vocab_size")


@dataclass(frozen=True)
class _Stored:
    """One tensor of the file: its type, where its bytes are, the array they form, and the shape of its values."""

    type: str
    offset: int
    bytes: int
    dtype: str
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]


class GgufFile:
    """A GGUF file of a llama-family or Qwen model, de-quantised on reading; names as Hugging Face has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = checked_header(path)
        self._heads: dict[str, int] = {}
        if header.fields["general.architecture"] == "llama":
            for name, key in {"q_proj": "head_count", "k_proj": "head_count_kv"}.items():
                self._heads[name] = header.fields[f"llama.attention.{key}"]
        self._tensors: dict[str, _Stored] = {}
        for info in header.tensors:
            name = hf_name(info.name)
            if name in self._tensors:
                raise ValueError(f"{path}: two tensors stand for {shown(name)}, one of them {shown(info.name)}")
            self._tensors[name] = _stored(path, info, header.file_bytes)
        self._bytes = np.memmap(path, mode="r")

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises ValueError where it is missing or of a type that holds no weights."""
        stored = self._found(name)
        if DTYPES.get(stored.type, "").startswith("int"):
            raise ValueError(f"{self.path}: tensor {name} is of type {stored.type}; expected weights")
        return stored.shape

    def tensor(self, name: str) -> Tensor:
        """One tensor in fp32. Raises ValueError where it is missing or of a type that cannot be de-quantised."""
        from gguf import GGMLQuantizationType, dequantize

        stored = self._found(name)
        try:
            with np.errstate(all="ignore"):  # scales that are no numbers are found by whoever takes the tensor
                values = dequantize(self._data(stored), GGMLQuantizationType[stored.type])
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name} of type {stored.type} cannot be read ({error})") from error
        return self._unpermute(name, torch.from_numpy(np.array(values, dtype=np.float32)))

    def blocks(self, name: str) -> Blocks | None:
        """One matrix as stored; None where it is of a type that is de-quantised on reading only."""
        stored = self._found(name)
        if stored.type not in BYTES or len(stored.shape) != 2:
            return None
        rows = self._unpermute(name, torch.from_numpy(np.array(self._data(stored))))
        return Blocks(stored.type, rows.unflatten(1, (-1, BYTES[stored.type])))

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the tensors as stored, quantised blocks and all (cached by path, size and time)."""
        del tied_head  # a GGUF file holds a tied head once

        def parts(name: str) -> tuple[str, memoryview]:
            stored = self._tensors[name]
            data = self._bytes[stored.offset : stored.offset + stored.bytes].data
            return f"{stored.type}{stored.stored_shape}", data

        return cached_digest([self.path], lambda: digest_of(self.names, parts))

    def _found(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name]

    def _data(self, stored: _Stored) -> np.ndarray[Any, Any]:
        raw = self._bytes[stored.offset : stored.offset + stored.bytes]
        if len(raw) < stored.bytes:
            raise ValueError("the file is cut short")
        return raw.view(stored.dtype).reshape(stored.stored_shape)

    def _unpermute(self, name: str, values: Tensor) -> Tensor:
        """Undo the pairing of rotary dimensions that llama.cpp's converter applies to llama's q and k."""
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind not in self._heads:
            return values
        heads, shape = self._heads[kind], values.shape
        if shape[0] % (2 * heads):
            raise ValueError(f"{self.path}: tensor {name} has {shape[0]} rows, which {heads} heads cannot share")
        return values.view(heads, shape[0] // heads // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)


def checked_header(path: Path) -> Header:
    """The header of a GGUF file, its metadata within the ranges of a config. Raises ValueError naming the field."""
    header = read_header(path)
    fields, architecture = header.fields, header.fields.get("general.architecture")
    if not isinstance(architecture, str):
        refuse(path, "general.architecture", architecture, "a string")
    with clear_errors(str(path)):
        families.load(architecture)
    for key, name in METADATA.items():
        field = validation.BACKBONE[name]
        if key not in OPTIONAL and f"{architecture}.{key}" not in fields:
            refuse(path, f"{architecture}.{key}", None, field)
    for full, value in fields.items():
        name = METADATA.get(full.partition(".")[2], "")  # of any architecture: transformers takes them all
        if name and not validation.BACKBONE[name].accepts(value):
            refuse(path, full, value, validation.BACKBONE[name])
    heads, kv_heads = (fields.get(f"{architecture}.attention.head_count{end}") for end in ("", "_kv"))
    if architecture == "llama" and kv_heads is None:
        refuse(path, "llama.attention.head_count_kv", None, validation.BACKBONE["num_key_value_heads"])
    if kv_heads is not None and heads % kv_heads:
        refuse(path, f"{architecture}.attention.head_count_kv", kv_heads, f"a divisor of head_count, {heads}")
    rotary = f"{architecture}.rope.dimension_count"
    if fields.get(rotary, 0) % 2:
        refuse(path, rotary, fields[rotary], "an even number")
    words = fields.get("tokenizer.ggml.tokens")
    if not isinstance(words, ArrayOf):
        refuse(path, "tokenizer.ggml.tokens", words, "a list of strings")
    for kind in ("bos", "eos", "unknown", "padding"):
        name = f"tokenizer.ggml.{kind}_token_id"
        validation.token_ids(path, name, fields.get(name), words.length)
    return header


def hf_name(name: str) -> str:
    """The Hugging Face name of a tensor; a name of another form stays as it is, and is refused as unknown."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    first, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    return f"model.layers.{index}.{BLOCK[part]}.{kind}" if first == "blk" and part in BLOCK else name


def _stored(path: Path, info: TensorInfo, file_bytes: int) -> _Stored:
    """Where the bytes of a tensor are. Raises ValueError naming the one that its type or the file has no room for."""
    from gguf import GGML_QUANT_SIZES

    what = f"{path}: tensor {shown(info.name)}"
    kind = {int(kind): kind for kind in GGML_QUANT_SIZES}.get(info.type)
    if kind is None:
        raise ValueError(f"{what} is of type {info.type}, which is not known")
    (*rows, values), (block, width) = info.shape, GGML_QUANT_SIZES[kind]
    if values % block:
        raise ValueError(f"{what} has rows of {values} values; {kind.name} needs a multiple of {block}")
    size = prod(info.shape) // block * width
    if size > file_bytes - info.offset:
        raise ValueError(
            f"{what} of shape {list(info.shape)} takes {size} bytes from byte {info.offset} on, but the file ends at"
            f" {file_bytes}; fetch the file again"
        )
    stored_shape = info.shape if kind.name in DTYPES else (*rows, values // block * width)
    return _Stored(kind.name, info.offset, size, DTYPES.get(kind.name, "uint8"), stored_shape, info.shape)
