"""GLM-4: norms on both sides, and rotary embeddings of neighbouring dimensions for a part of each head."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common, rotary_dim

NAMES = {
    "post_attention_layernorm": "post_self_attn_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}
"""Its names of tensors, by those that families with norms on both sides have."""


def config(hf: Any) -> DecoderConfig:
    """Translate a GLM-4 config."""
    return common(
        hf,
        per_layer=(),
        qkv_bias=hf.attention_bias,
        post_norms=True,
        rotary_dim=rotary_dim(hf),
        rotary_pairs=True,
        fused_sources=("gate_up",),
    )
