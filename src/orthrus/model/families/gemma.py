"""Gemma 1: scaled embeddings, GELU, and norms that multiply by weight + 1."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Gemma config. Raises ValueError for bidirectional attention."""
    if hf.use_bidirectional_attention:
        raise ValueError("use_bidirectional_attention is not supported: the AR view is causal")
    return common(
        hf,
        per_layer=(),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        norm_offset=1.0,
        embedding_scale=hf.hidden_size**0.5,
    )
