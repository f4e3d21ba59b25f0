"""Cohere2 (Command R7B, Command A): attention beside the MLP; layers without a window have no positions."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig, RopeConfig
from orthrus.model.families import common, head_dim, rope, windows


def config(hf: Any) -> DecoderConfig:
    """Translate a Cohere2 config."""
    no_positions = RopeConfig((0.0,) * (head_dim(hf) // 2))
    return common(
        hf,
        norm_eps=hf.layer_norm_eps,
        ropes=(rope(hf), no_positions),
        per_layer=tuple(LayerConfig(window, rope=int(window is None)) for window in windows(hf)),
        rotary_pairs=True,
        norm_centred=True,
        parallel=True,
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        logit_scale=hf.logit_scale,
    )
