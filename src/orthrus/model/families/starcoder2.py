"""StarCoder2: LayerNorm, biases everywhere, and an MLP with GELU and without gates."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig
from orthrus.model.families import common, one_window

NAMES = {"up_proj": "c_fc", "down_proj": "c_proj"}
"""Its names of tensors, by the usual ones."""


def config(hf: Any) -> DecoderConfig:
    """Translate a StarCoder2 config."""
    return common(
        hf,
        norm_eps=hf.norm_epsilon,
        per_layer=tuple(map(LayerConfig, one_window(hf))),
        norm_centred=True,
        norm_bias=True,
        gated=False,
        qkv_bias=hf.use_bias,
        o_bias=hf.use_bias,
        mlp_bias=hf.use_bias,
    )
