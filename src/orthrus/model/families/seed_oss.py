"""Seed-OSS: Llama with biases in the q, k and v projections."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Seed-OSS config."""
    return common(hf, per_layer=(), qkv_bias=hf.attention_bias, o_bias=hf.attention_out_bias, mlp_bias=hf.mlp_bias)
