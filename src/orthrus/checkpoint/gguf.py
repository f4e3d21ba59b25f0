"""GGUF files of llama-family and Qwen models, de-quantised on reading; tensor names as Hugging Face has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthrus.checkpoint.derived import cached_digest, cached_json, stamp
from orthrus.checkpoint.tensors import digest_of
from orthrus.model.blocks import BYTES, Blocks

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class _Stored:
    """One tensor of the file: its type, where its bytes are, and the array they form."""

    name: str
    type: str
    offset: int
    bytes: int
    dtype: str
    shape: list[int]


class GgufFile:
    """A GGUF file of a llama-family or Qwen model, de-quantised on reading; names as Hugging Face has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = cached_json(f"gguf-{stamp(path)}", lambda: _read_header(path))
        self._heads: dict[str, int] = header["heads"]
        self._tensors = {_hf_name(t["name"]): _Stored(**t) for t in header["tensors"]}
        self._bytes = np.memmap(path, mode="r")

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """One tensor in fp32. Raises ValueError where it is missing or of a type that cannot be de-quantised."""
        from gguf import GGMLQuantizationType, dequantize

        if name not in self._tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        stored = self._tensors[name]
        try:
            values = dequantize(self._data(stored), GGMLQuantizationType[stored.type])
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name} of type {stored.type} cannot be read ({error})") from error
        return self._unpermute(name, torch.from_numpy(np.array(values, dtype=np.float32)))

    def blocks(self, name: str) -> Blocks | None:
        """One matrix as stored; None where it is of a type that is de-quantised on reading only."""
        stored = self._tensors[name]
        if stored.type not in BYTES or len(stored.shape) != 2:
            return None
        rows = self._unpermute(name, torch.from_numpy(np.array(self._data(stored))))
        return Blocks(stored.type, rows.unflatten(1, (-1, BYTES[stored.type])))

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the tensors as stored, quantised blocks and all (cached by path, size and time)."""
        del tied_head  # a GGUF file holds a tied head once

        def parts(name: str) -> tuple[str, memoryview]:
            stored = self._tensors[name]
            return f"{stored.type}{tuple(stored.shape)}", self._bytes[stored.offset : stored.offset + stored.bytes].data

        return cached_digest([self.path], lambda: digest_of(self.names, parts))

    def _data(self, stored: _Stored) -> np.ndarray[Any, Any]:
        raw = self._bytes[stored.offset : stored.offset + stored.bytes]
        if len(raw) < stored.bytes:
            raise ValueError("the file is cut short")
        return raw.view(stored.dtype).reshape(stored.shape)

    def _unpermute(self, name: str, values: Tensor) -> Tensor:
        """Undo the pairing of rotary dimensions that llama.cpp's converter applies to llama's q and k."""
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if kind not in self._heads:
            return values
        heads, shape = self._heads[kind], values.shape
        return values.view(heads, shape[0] // heads // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)


def _read_header(path: Path) -> dict[str, Any]:
    """What is needed of a GGUF header, in a form that JSON can keep: parsing one takes seconds."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as GGUF ({error}); fetch the file again") from error

    def field(key: str) -> Any:
        found = reader.get_field(key)
        if found is None:
            raise ValueError(f"{path}: the GGUF header lacks {key}")
        return found.contents()

    heads: dict[str, int] = {}
    if field("general.architecture") == "llama":
        for name, key in {"q_proj": "head_count", "k_proj": "head_count_kv"}.items():
            heads[name] = int(field(f"llama.attention.{key}"))
    tensors = [
        {
            "name": t.name, "type": t.tensor_type.name, "offset": int(t.data_offset), "bytes": int(t.n_bytes),
            "dtype": str(t.data.dtype), "shape": [int(n) for n in t.data.shape],
        }
        for t in reader.tensors
    ]  # fmt: skip
    return {"heads": heads, "tensors": tensors}


def _hf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    if stem.startswith("blk."):
        _, index, part = stem.split(".", 2)
        if part in BLOCK:
            return f"model.layers.{index}.{BLOCK[part]}.{kind}"
    return name
