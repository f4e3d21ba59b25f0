"""The config of a backbone from the metadata of a GGUF file, where `transformers` has no conversion or drops fields.

What llama.cpp does not store, because its code fixes it for the architecture, is fixed here in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthrus.checkpoint.gguf_architectures import name_of
from orthrus.checkpoint.gguf_conversions import CONVERSIONS, PLAIN, mistral
from orthrus.checkpoint.gguf_rope import of_llama3

UNKNOWN_TO_TRANSFORMERS = (
    "smollm3", "granite", "olmo2", "gemma", "arcee", "hunyuan-dense", "seed_oss", "ernie4_5", "glm4", "exaone4",
    "cohere2",
)  # fmt: skip
"""Architectures whose tokenizer `transformers` reads, but not by way of their config."""


def of(
    fields: Mapping[str, Any], tensor_names: list[str], rope_factors: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """The content of a `config.json`; None for an architecture that `transformers` converts.

    rope_factors: the tensor `rope_freqs.weight`, by which the rotary frequencies are divided; None where there is none.
    Raises ValueError where the rotary embeddings are scaled in a way that is not supported.
    """
    architecture = fields["general.architecture"]
    prefix = f"{architecture}."
    metadata = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    windowed = "attention.sliding_window" in metadata or fields.get("general.name") == "mistral"
    metadata["attention.sliding_window"] = metadata.get("attention.sliding_window") or None  # 0: there is none
    scaled = rope_factors is not None or any(name.startswith("rope.scal") for name in metadata)
    convert = CONVERSIONS.get(name_of(fields))
    if convert is None and architecture == "llama" and windowed:
        convert = mistral
    elif scaled and convert is None:  # `transformers` would drop that
        convert = PLAIN.get(architecture)
    if convert is None:
        return None
    content = {
        "max_position_embeddings": metadata["context_length"],
        "num_hidden_layers": metadata["block_count"],
        "hidden_size": metadata["embedding_length"],
        "intermediate_size": metadata["feed_forward_length"],
        "num_attention_heads": metadata["attention.head_count"],
        "num_key_value_heads": metadata.get("attention.head_count_kv", metadata["attention.head_count"]),
        "vocab_size": metadata.get("vocab_size", fields["tokenizer.ggml.tokens"].length),
        "tie_word_embeddings": "output.weight" not in tensor_names,
    }
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    content |= {f"{ours}_token_id": fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in ids.items()}
    if "attention.layer_norm_rms_epsilon" in metadata:
        content["rms_norm_eps"] = metadata["attention.layer_norm_rms_epsilon"]
    content |= convert(metadata, {**content, **_stated_by(tensor_names)})
    if rope_factors is not None:
        content["rope_parameters"] = of_llama3(content, rope_factors)
    return content


def _stated_by(tensor_names: list[str]) -> dict[str, bool]:
    """What a file says by the tensors that its first layer has."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
        "output_bias": "blk.0.attn_output.bias" in tensor_names,
        "mlp_bias": "blk.0.ffn_down.bias" in tensor_names,
        "head_norms": "blk.0.attn_q_norm.weight" in tensor_names,
        "parallel": "blk.0.ffn_norm.weight" not in tensor_names,
    }
