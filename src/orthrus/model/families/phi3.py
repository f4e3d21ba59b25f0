"""Phi-3 and Phi-4: fused source tensors, and rotary embeddings for a part of each head."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig
from orthrus.model.families import common, one_window, rotary_dim


def config(hf: Any) -> DecoderConfig:
    """Translate a Phi-3 config."""
    layers = tuple(map(LayerConfig, one_window(hf)))
    return common(hf, per_layer=layers, rotary_dim=rotary_dim(hf), fused_sources=("qkv", "gate_up"))
