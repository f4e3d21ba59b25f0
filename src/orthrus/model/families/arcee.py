"""Arcee (AFM): Llama whose MLP has no gates and squares its ReLU."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate an Arcee config."""
    biases = {"qkv_bias": hf.attention_bias, "o_bias": hf.attention_bias, "mlp_bias": hf.mlp_bias}
    return common(hf, per_layer=(), gated=False, **biases)
