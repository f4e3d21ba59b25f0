"""Qwen3: q/k norms per head; biases only if the config sets them."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Qwen3 config."""
    return common(hf, qk_norm="head", qkv_bias=hf.attention_bias, o_bias=hf.attention_bias)
