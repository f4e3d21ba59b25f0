"""Hunyuan, dense: norms of q and k after the rotary embeddings, whose base is stretched by a fixed factor."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common, head_dim, rope

NAMES = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}
"""Its names of tensors, by the usual ones."""


def config(hf: Any) -> DecoderConfig:
    """Translate a Hunyuan config. Its rotary embeddings of type `dynamic` with an `alpha` are of one fixed base."""
    parameters = hf.rope_parameters
    if parameters.get("rope_type") == "dynamic" and (alpha := parameters.get("alpha")):
        size = head_dim(hf)
        theta = parameters["rope_theta"] * alpha ** (size / (size - 2))
        parameters = {"rope_type": "default", "rope_theta": theta}
    return common(
        hf,
        ropes=(rope(hf, parameters),),
        per_layer=(),
        qk_norm="head",
        qk_norm_last=True,
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
    )
