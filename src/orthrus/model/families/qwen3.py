"""Qwen3: a norm on every query and key head; biases only where the config asks for them."""

from __future__ import annotations

from typing import Any

from orthrus.config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Qwen3 config."""
    return common(hf, qk_norm=True, qkv_bias=hf.attention_bias, o_bias=hf.attention_bias)
