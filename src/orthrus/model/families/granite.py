"""Granite: Llama with multipliers of embeddings, attention scores, residual updates and logits."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Granite config."""
    return common(
        hf,
        per_layer=(),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        embedding_scale=hf.embedding_multiplier,
        attention_scale=hf.attention_multiplier,
        residual_scale=hf.residual_multiplier,
        logit_scale=1 / hf.logits_scaling,
    )
