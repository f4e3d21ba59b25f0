"""Llama and models with its layout (SmolLM2): no q/k norms; biases if the config sets them."""

from __future__ import annotations

from typing import Any

from orthrus.config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Llama config."""
    return common(hf, qkv_bias=hf.attention_bias, o_bias=hf.attention_bias, mlp_bias=hf.mlp_bias)
