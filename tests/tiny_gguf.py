"""Builds tiny llama-family GGUF files, valid or with parts removed or changed, and raw headers."""

from __future__ import annotations

import struct

import gguf
import k_blocks
import numpy as np
import tiny
from tokenizers import pre_tokenizers

FIELDS = {
    "context_length": 2048, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16, "vocab_size": tiny.VOCAB,
}  # fmt: skip


def tensors(seed=0, hidden=64, inner=96):
    """fp32 arrays by llama.cpp name, with the shapes of `FIELDS` or of another hidden and intermediate size."""
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (tiny.VOCAB, hidden), "output_norm.weight": (hidden,)}
    square, key, wide = (hidden, hidden), (hidden // 2, hidden), (inner, hidden)
    for layer in range(2):
        parts = {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": square, "attn_k": key, "attn_v": key,
            "attn_output": square, "ffn_gate": wide, "ffn_up": wide, "ffn_down": (hidden, inner),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}


def save(path, weights=None, types=None, **fields):
    """Write the file; `fields` replace those of `FIELDS` (None removes one), with two underscores for a dot."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (FIELDS | {name.replace("__", "."): value for name, value in fields.items()}).items():
        name = key if key.startswith(("general.", "tokenizer.")) else f"llama.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            (writer.add_uint32 if value >= 0 else writer.add_int32)(name, value)
    if "rope__freq_base" not in fields:
        writer.add_rope_freq_base(10000.0)
    if "attention__layer_norm_rms_epsilon" not in fields:
        writer.add_layer_norm_rms_eps(1e-5)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "ab", "cd"]
    tokens += [*(f"<unused{n}>" for n in range(len(tokens), tiny.VOCAB - 1)), "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(letters) + 2) + [3] * (tiny.VOCAB - len(letters) - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(tiny.END)
    for name, values in (tensors() if weights is None else weights).items():
        kind = (types or {}).get(name)
        stored = values if kind is None else k_blocks.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text):
    """A string in the encoding of GGUF."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def header(*parts, tensors=0, fields=1, version=3):
    """A header that claims `tensors` tensors and `fields` fields, followed by `parts`."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


def field(name, kind, data):
    """One metadata field with a raw type number."""
    return string(name) + struct.pack("<I", kind) + data
