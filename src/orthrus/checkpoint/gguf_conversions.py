"""The configs of GGUF files by architecture: metadata, and what llama.cpp's code fixes, as fields of `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from orthrus.checkpoint.gguf_rope import head_dim, parameters

GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
"""The models whose attention scale is derived from the hidden size: llama.cpp knows them by their number of layers."""


def _llama(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    size = metadata.get("rope.dimension_count", content["hidden_size"] // content["num_attention_heads"])
    return {"model_type": "llama", "head_dim": size, "rope_parameters": parameters(metadata, 10000.0)}


def _qwen2(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    del content
    return {"model_type": "qwen2", "use_sliding_window": False, "rope_parameters": parameters(metadata, 10000.0)}


def mistral(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A Mistral has the architecture of Llama; what files know of its sliding window is its size, if anything."""
    size = metadata.get("rope.dimension_count", content["hidden_size"] // content["num_attention_heads"])
    window = metadata.get("attention.sliding_window")
    rope = parameters(metadata, 10000.0)
    return {"model_type": "mistral", "head_dim": size, "sliding_window": window, "rope_parameters": rope}


def _smollm3(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    layers = [int((index + 1) % 4 != 0) for index in range(content["num_hidden_layers"])]
    return {"model_type": "smollm3", "no_rope_layers": layers, "rope_parameters": parameters(metadata, 2000000.0)}


def _phi3(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    size = content["hidden_size"] // content["num_attention_heads"]
    rope = parameters(metadata, 10000.0) | {"partial_rotary_factor": metadata.get("rope.dimension_count", size) / size}
    return {"model_type": "phi3", "sliding_window": metadata.get("attention.sliding_window"), "rope_parameters": rope}


def _gemma(metadata: Mapping[str, Any], content: Mapping[str, Any], *, every: int, largest: int) -> dict[str, Any]:
    """What the Gemmas share; every `every`-th layer attends to all keys."""
    size, layers, heads = head_dim(metadata), content["num_hidden_layers"], content["num_attention_heads"]
    kinds = ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)]
    return {
        "head_dim": size,
        "query_pre_attn_scalar": content["hidden_size"] // heads if layers == largest else size,
        "sliding_window": metadata.get("attention.sliding_window"),
        "layer_types": kinds,
    }


def _gemma2(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.get("final_logit_softcapping", 30.0),
    }
    gemma = _gemma(metadata, content, every=2, largest=GEMMA2_27B_LAYERS)
    return {"model_type": "gemma2", **gemma, **caps, "rope_parameters": parameters(metadata, 10000.0)}


def _gemma3(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    every = metadata.get("attention.sliding_window_pattern", 6)
    local = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base_swa", 10000.0)}
    return {
        "model_type": "gemma3_text",
        **_gemma(metadata, content, every=every, largest=GEMMA3_27B_LAYERS),
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
        "rope_parameters": {"full_attention": parameters(metadata, 1000000.0), "sliding_attention": local},
    }


def _qwen3(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    del content
    return {"model_type": "qwen3", "head_dim": head_dim(metadata), "rope_parameters": parameters(metadata, 10000.0)}


def _qwen3_moe(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen3(metadata, content) | {
        "model_type": "qwen3_moe",
        "num_experts": metadata["expert_count"],
        "num_experts_per_tok": metadata["expert_used_count"],
        "moe_intermediate_size": metadata["expert_feed_forward_length"],
        "norm_topk_prob": metadata.get("expert_weights_norm", True),
    }


def _mixtral(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return mistral(metadata, content) | {
        "model_type": "mixtral",
        "num_local_experts": metadata["expert_count"],
        "num_experts_per_tok": metadata["expert_used_count"],
    }


def _qwen2_moe(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen3_moe(metadata, content) | {
        "model_type": "qwen2_moe",
        "norm_topk_prob": metadata.get("expert_weights_norm", False),
        "shared_expert_intermediate_size": metadata["expert_shared_feed_forward_length"],
        "qkv_bias": content["attention_bias"],
        "use_sliding_window": False,
    }


def _gpt_oss(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Every other layer has a window. The bounds of its rotary scaling are not rounded."""
    layers, rope = content["num_hidden_layers"], parameters(metadata, 150000.0)
    return {
        "model_type": "gpt_oss",
        "head_dim": head_dim(metadata),
        "intermediate_size": metadata["expert_feed_forward_length"],
        "num_local_experts": metadata["expert_count"],
        "num_experts_per_tok": metadata["expert_used_count"],
        "sliding_window": metadata["attention.sliding_window"],
        "layer_types": ["full_attention" if index % 2 else "sliding_attention" for index in range(layers)],
        "rope_parameters": rope if rope["rope_type"] == "default" else {**rope, "truncate": False},
    }


def _granite(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    multipliers = {
        "attention_multiplier": metadata.get("attention.scale") or head_dim(metadata) ** -0.5,
        "embedding_multiplier": metadata.get("embedding_scale") or 1.0,
        "residual_multiplier": metadata.get("residual_scale") or 1.0,
        "logits_scaling": metadata.get("logit_scale") or 1.0,
    }
    return _biased("granite", metadata, content) | multipliers


def _biased(family: str, metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A Llama under another name, with biases where the file has them."""
    biases = {name: content[name] for name in ("attention_bias", "mlp_bias")}
    return {
        "model_type": family,
        "head_dim": head_dim(metadata),
        "rope_parameters": parameters(metadata, 10000.0),
        **biases,
    }


def _seed_oss(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return _biased("seed_oss", metadata, content) | {"attention_out_bias": content["output_bias"]}


def _ernie(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    rope = parameters(metadata, 500000.0)
    return {
        "model_type": "ernie4_5",
        "head_dim": head_dim(metadata),
        "rope_parameters": rope,
        "use_bias": content["attention_bias"],
    }


def _partial(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings for a part of each head."""
    size = head_dim(metadata)
    return parameters(metadata, 10000.0) | {"partial_rotary_factor": metadata.get("rope.dimension_count", size) / size}


def _glm4(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return _biased("glm4", metadata, content) | {"rope_parameters": _partial(metadata)}


def _exaone4(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Every fourth layer attends to all keys in files with a window, as llama.cpp has it."""
    window, layers = metadata.get("attention.sliding_window"), content["num_hidden_layers"]
    kinds = ["sliding_attention" if window and (index + 1) % 4 else "full_attention" for index in range(layers)]
    return {
        "model_type": "exaone4",
        "head_dim": head_dim(metadata),
        "sliding_window": window,
        "layer_types": kinds,
        "rope_parameters": parameters(metadata, 1000000.0),
    }


def _cohere2(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    layers = content["num_hidden_layers"]
    return {
        "model_type": "cohere2",
        "layer_norm_eps": metadata["attention.layer_norm_epsilon"],
        "attention_bias": content["attention_bias"],
        "logit_scale": metadata["logit_scale"],
        "sliding_window": metadata["attention.sliding_window"],
        "layer_types": ["sliding_attention" if (index + 1) % 4 else "full_attention" for index in range(layers)],
        "rope_parameters": parameters(metadata, 10000.0),
    }


def _starcoder2(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "starcoder2",
        "norm_epsilon": metadata["attention.layer_norm_epsilon"],
        "use_bias": content["attention_bias"],
        "sliding_window": metadata.get("attention.sliding_window"),
        "rope_parameters": parameters(metadata, 10000.0),
    }


def _stablelm(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "stablelm",
        "layer_norm_eps": metadata["attention.layer_norm_epsilon"],
        "use_qkv_bias": content["attention_bias"],
        "qk_layernorm": content["head_norms"],
        "use_parallel_residual": content["parallel"],
        "rope_parameters": _partial(metadata),
    }


def _nemotron(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    eps = metadata["attention.layer_norm_epsilon"]
    return _biased("nemotron", metadata, content) | {"norm_eps": eps, "rope_parameters": _partial(metadata)}


Conversion = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
PLAIN: dict[str, Conversion] = {"llama": _llama, "qwen2": _qwen2}
"""Architectures that `transformers` converts, but for scaled rotary embeddings."""
CONVERSIONS: dict[str, Conversion] = {
    "smollm3": _smollm3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "mixtral": _mixtral,
    "qwen2moe": _qwen2_moe,
    "gpt-oss": _gpt_oss,
    "granite": _granite,
    "olmo2": partial(_biased, "olmo2"),
    "gemma": partial(_biased, "gemma"),
    "arcee": partial(_biased, "arcee"),
    "hunyuan-dense": partial(_biased, "hunyuan_v1_dense"),
    "seed_oss": _seed_oss,
    "ernie4_5": _ernie,
    "glm4": _glm4,
    "exaone4": _exaone4,
    "cohere2": _cohere2,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "nemotron": _nemotron,
}
