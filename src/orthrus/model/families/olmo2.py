"""OLMo 2: norms after attention and MLP only, and norms of q and k over all heads at once."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate an OLMo 2 config."""
    biases = {"qkv_bias": hf.attention_bias, "o_bias": hf.attention_bias}
    return common(hf, per_layer=(), pre_norms=False, post_norms=True, qk_norm="row", **biases)
