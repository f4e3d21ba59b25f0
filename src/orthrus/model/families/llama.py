"""Llama and models with its layout (SmolLM2): no q/k norms; biases if the config sets them."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Llama config. Raises ValueError for sliding windows, which transformers ignores in this family."""
    if getattr(hf, "use_sliding_window", False) or {*(getattr(hf, "layer_types", None) or ())} - {"full_attention"}:
        raise ValueError("sliding-window attention is not supported in a llama (this config asks for it)")
    return common(hf, per_layer=(), qkv_bias=hf.attention_bias, o_bias=hf.attention_bias, mlp_bias=hf.mlp_bias)
