"""Gemma 2: norms on both sides, scaled embeddings, GELU, soft caps, and a window in every other layer."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Gemma 2 config."""
    return gemma(hf, attention_soft_cap=hf.attn_logit_softcapping)


def gemma(hf: Any, **differences: Any) -> DecoderConfig:
    """What Gemma 2 and 3 have in common. Raises ValueError for bidirectional attention."""
    if hf.use_bidirectional_attention:
        raise ValueError("use_bidirectional_attention is not supported: the AR view is causal")
    return common(
        hf,
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        norm_offset=1.0,
        post_norms=True,
        embedding_scale=hf.hidden_size**0.5,
        attention_scale=hf.query_pre_attn_scalar**-0.5,
        logit_soft_cap=hf.final_logit_softcapping,
        **differences,
    )
