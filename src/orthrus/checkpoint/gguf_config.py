"""The config of a backbone from the metadata of a GGUF file, where `transformers` has no conversion or drops fields.

What llama.cpp does not store, because its code fixes it for the architecture, is fixed here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
"""The models whose attention scale is derived from the hidden size: llama.cpp knows them by their number of layers."""


def of(fields: Mapping[str, Any], tensor_names: list[str]) -> dict[str, Any] | None:
    """The content of a `config.json`; None for an architecture that `transformers` converts."""
    architecture = fields["general.architecture"]
    mistral = f"{architecture}.attention.sliding_window" in fields or fields.get("general.name") == "mistral"
    convert = _mistral if architecture == "llama" and mistral else CONVERSIONS.get(architecture)
    if convert is None:
        return None
    prefix = f"{architecture}."
    own = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    content = {
        "max_position_embeddings": own["context_length"],
        "num_hidden_layers": own["block_count"],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own.get("attention.head_count_kv", own["attention.head_count"]),
        "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
        "vocab_size": own.get("vocab_size", fields["tokenizer.ggml.tokens"].length),
        "tie_word_embeddings": "output.weight" not in tensor_names,
    }
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    content |= {f"{ours}_token_id": fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in ids.items()}
    return content | convert(own, content)


def _head_dim(own: Mapping[str, Any]) -> int:
    return int(own.get("attention.key_length") or own["embedding_length"] // own["attention.head_count"])


def _rope(own: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The rotary parameters, with linear scaling where the file has it."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", theta)}
    kind = own.get("rope.scaling.type", "none")
    if kind == "none":
        return parameters
    trained = {"original_max_position_embeddings": own.get("rope.scaling.original_context_length")}
    parameters |= {"rope_type": kind, "factor": own.get("rope.scaling.factor", 1.0)}
    return parameters | {name: value for name, value in trained.items() if value is not None}


def _mistral(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A Mistral has the architecture of Llama; what files know of its sliding window is its size, if anything."""
    size = own.get("rope.dimension_count", content["hidden_size"] // content["num_attention_heads"])
    window = own.get("attention.sliding_window")
    rope = _rope(own, 10000.0)
    return {"model_type": "mistral", "head_dim": size, "sliding_window": window, "rope_parameters": rope}


def _smollm3(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    layers = [int((index + 1) % 4 != 0) for index in range(content["num_hidden_layers"])]
    return {"model_type": "smollm3", "no_rope_layers": layers, "rope_parameters": _rope(own, 2000000.0)}


def _phi3(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    size = content["hidden_size"] // content["num_attention_heads"]
    rope = _rope(own, 10000.0) | {"partial_rotary_factor": own.get("rope.dimension_count", size) / size}
    return {
        "model_type": "phi3",
        "sliding_window": own.get("attention.sliding_window") or None,
        "rope_parameters": rope,
    }


def _gemma(own: Mapping[str, Any], content: Mapping[str, Any], *, every: int, largest: int) -> dict[str, Any]:
    """What the Gemmas share; every `every`-th layer attends to all keys."""
    size, layers, heads = _head_dim(own), content["num_hidden_layers"], content["num_attention_heads"]
    kinds = ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)]
    return {
        "head_dim": size,
        "query_pre_attn_scalar": content["hidden_size"] // heads if layers == largest else size,
        "sliding_window": own.get("attention.sliding_window"),
        "layer_types": kinds,
    }


def _gemma2(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": own.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": own.get("final_logit_softcapping", 30.0),
    }
    gemma = _gemma(own, content, every=2, largest=GEMMA2_27B_LAYERS)
    return {"model_type": "gemma2", **gemma, **caps, "rope_parameters": _rope(own, 10000.0)}


def _gemma3(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    every = own.get("attention.sliding_window_pattern", 6)
    local = {"rope_type": "default", "rope_theta": own.get("rope.freq_base_swa", 10000.0)}
    return {
        "model_type": "gemma3_text",
        **_gemma(own, content, every=every, largest=GEMMA3_27B_LAYERS),
        "final_logit_softcapping": own.get("final_logit_softcapping"),
        "rope_parameters": {"full_attention": _rope(own, 1000000.0), "sliding_attention": local},
    }


def _qwen3(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    del content
    return {"model_type": "qwen3", "head_dim": _head_dim(own), "rope_parameters": _rope(own, 10000.0)}


def _qwen3_moe(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen3(own, content) | {
        "model_type": "qwen3_moe",
        "num_experts": own["expert_count"],
        "num_experts_per_tok": own["expert_used_count"],
        "moe_intermediate_size": own["expert_feed_forward_length"],
        "norm_topk_prob": own.get("expert_weights_norm", True),
    }


UNKNOWN_TO_TRANSFORMERS = ("smollm3",)
"""Architectures whose tokenizer `transformers` reads, but not by way of their config."""
CONVERSIONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "smollm3": _smollm3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
}
