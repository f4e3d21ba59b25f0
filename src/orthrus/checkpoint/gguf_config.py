"""The config of a backbone from the metadata of a GGUF file, where `transformers` has no conversion or drops fields.

What llama.cpp does not store, because its code fixes it for the architecture, is fixed here in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
"""The models whose attention scale is derived from the hidden size: llama.cpp knows them by their number of layers."""


def of(
    fields: Mapping[str, Any], tensor_names: list[str], rope_factors: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """The content of a `config.json`; None for an architecture that `transformers` converts.

    rope_factors: the tensor `rope_freqs.weight`, by which the rotary frequencies are divided; None where there is none.
    Raises ValueError where the rotary embeddings are scaled in a way that is not supported.
    """
    architecture = fields["general.architecture"]
    prefix = f"{architecture}."
    own = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    mistral = "attention.sliding_window" in own or fields.get("general.name") == "mistral"
    scaled = rope_factors is not None or any(name.startswith("rope.scal") for name in own)
    convert = CONVERSIONS.get(architecture)
    if architecture == "llama" and mistral:
        convert = _mistral
    elif scaled and convert is None:  # `transformers` would drop that
        convert = PLAIN.get(architecture)
    if convert is None:
        return None
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
    content |= convert(own, content)
    if rope_factors is not None:
        content["rope_parameters"] = _llama3(content, rope_factors)
    return content


def _head_dim(own: Mapping[str, Any]) -> int:
    return int(own.get("attention.key_length") or own["embedding_length"] // own["attention.head_count"])


def _rope(own: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The rotary parameters, with the scaling that the file has. A factor alone means linear scaling."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", theta)}
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0)) or 1.0
    kind = own.get("rope.scaling.type", "linear" if factor != 1.0 else "none")
    further = {name: value for name, value in own.items() if name.startswith("rope.scaling.") and name not in SCALING}
    if unknown := [name for name, value in further.items() if value != NEUTRAL.get(name)]:
        raise ValueError(f"the rotary embeddings are scaled by {', '.join(sorted(unknown))}, which is not supported")
    if kind == "none":
        return parameters
    trained = {"original_max_position_embeddings": own.get("rope.scaling.original_context_length")}
    parameters |= {"rope_type": kind, "factor": factor}
    return parameters | {name: value for name, value in trained.items() if value is not None}


def _llama3(content: Mapping[str, Any], factors: Sequence[float]) -> dict[str, Any]:
    """The rotary parameters of Llama 3.1 and later, of which a file holds the result: a factor per frequency."""
    size = content.get("head_dim", content["hidden_size"] // content["num_attention_heads"])
    theta, scaling = content["rope_parameters"]["rope_theta"], {**LLAMA3, "factor": round(max(factors), 3)}
    expected = []
    for pair in range(size // 2):
        turns = LLAMA3["original_max_position_embeddings"] * theta ** (-2 * pair / size) / (2 * math.pi)
        kept = (turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        kept = min(max(kept, 0.0), 1.0)
        expected.append(1 / ((1 - kept) / scaling["factor"] + kept))
    same = len(factors) == len(expected) and all(
        math.isclose(own, other, rel_tol=1e-3) for own, other in zip(factors, expected, strict=True)
    )
    if not same:
        raise ValueError("rope_freqs.weight holds other factors than those of Llama 3, which is not supported")
    return {"rope_type": "llama3", "rope_theta": theta, **scaling}


def _llama(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    size = own.get("rope.dimension_count", content["hidden_size"] // content["num_attention_heads"])
    return {"model_type": "llama", "head_dim": size, "rope_parameters": _rope(own, 10000.0)}


def _qwen2(own: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    del content
    return {"model_type": "qwen2", "use_sliding_window": False, "rope_parameters": _rope(own, 10000.0)}


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


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The scaling of rotary embeddings in Llama 3.1 to 3.3, apart from its factor."""
SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned")
NEUTRAL = {"rope.scaling.attn_factor": 1.0}
"""Metadata of scaled rotary embeddings: what is read or has no effect, and further values that have none."""
UNKNOWN_TO_TRANSFORMERS = ("smollm3",)
"""Architectures whose tokenizer `transformers` reads, but not by way of their config."""
PLAIN: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {"llama": _llama, "qwen2": _qwen2}
"""Architectures that `transformers` converts, but for scaled rotary embeddings."""
CONVERSIONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "smollm3": _smollm3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
}
