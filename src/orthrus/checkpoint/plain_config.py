"""The config of a backbone without `transformers`, whose import takes longer than the rest of a start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "eos_token_id",
    "hidden_act",
)  # fmt: skip
OWN_FIELDS = {"llama": ("attention_bias", "mlp_bias"), "qwen2": (), "qwen3": ("attention_bias", "head_dim")}
"""The families that need no more of a config than its own fields, and the fields that only they read."""

ELSEWHERE = (
    "rope_scaling", "quantization_config", "per_layer_config", "text_config", "partial_rotary_factor",
    "use_sliding_window",
)  # fmt: skip
"""Fields that `transformers` interprets."""


def of(family: str, content: dict[str, Any]) -> SimpleNamespace | None:
    """A config whose attributes are those that `transformers` gives it.

    None where it could differ: in a family that is not listed, where a field is missing and gets the default of the
    family, and where one of `ELSEWHERE` is set.
    """
    needed = (*FIELDS, *OWN_FIELDS.get(family, ()))
    if family not in OWN_FIELDS or any(content.get(name) is None for name in needed if name != "eos_token_id"):
        return None
    rope = _rope_parameters(content)
    if rope is None or "eos_token_id" not in content or any(content.get(name) for name in ELSEWHERE):
        return None
    fields = {name: content[name] for name in needed}
    optional = {name: content.get(name) for name in ("head_dim", "use_sliding_window", "layer_types")}
    return SimpleNamespace(model_type=family, rope_parameters=rope, **{**optional, **fields})


def _rope_parameters(content: dict[str, Any]) -> dict[str, Any] | None:
    """The rotary parameters of the default type, under their newer name or as `rope_theta`; None where they differ."""
    rope, theta = content.get("rope_parameters"), content.get("rope_theta")
    if rope is None:
        return None if theta is None else {"rope_type": "default", "rope_theta": theta}
    plain = set(rope) <= {"rope_type", "rope_theta"} and rope.get("rope_type", "default") == "default"
    if not plain or rope.get("rope_theta") is None:
        return None
    return {"rope_type": "default", "rope_theta": rope["rope_theta"]}
