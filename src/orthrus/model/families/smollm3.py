"""SmolLM3: Llama in which some layers, every fourth by default, have no positions."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig, RopeConfig
from orthrus.model.families import common, head_dim, rope, windows


def config(hf: Any) -> DecoderConfig:
    """Translate a SmolLM3 config; `no_rope_layers` has a 0 for each layer without positions."""
    no_positions = RopeConfig((0.0,) * (head_dim(hf) // 2))
    layers = zip(windows(hf), hf.no_rope_layers, strict=False)  # the list may be longer than the model
    return common(
        hf,
        ropes=(rope(hf), no_positions),
        per_layer=tuple(LayerConfig(window, rope=0 if rotated else 1) for window, rotated in layers),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
    )
