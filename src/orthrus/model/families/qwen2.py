"""Qwen2: biases in the q, k and v projections, none in the output projection."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Qwen2 config."""
    return common(hf, qkv_bias=True)
