"""ERNIE 4.5: Llama whose rotary embeddings pair neighbouring dimensions."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate an ERNIE 4.5 config."""
    bias = bool(hf.use_bias)
    return common(hf, per_layer=(), rotary_pairs=True, qkv_bias=bias, o_bias=bias, mlp_bias=bias)
