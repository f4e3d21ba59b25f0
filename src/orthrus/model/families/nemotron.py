"""Nemotron and Minitron: LayerNorm that multiplies by weight + 1, and an MLP that squares its ReLU."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common, rotary_dim


def config(hf: Any) -> DecoderConfig:
    """Translate a Nemotron config."""
    return common(
        hf,
        norm_eps=hf.norm_eps,
        per_layer=(),
        norm_centred=True,
        norm_bias=True,
        norm_offset=1.0,
        gated=False,
        rotary_dim=rotary_dim(hf),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
    )
