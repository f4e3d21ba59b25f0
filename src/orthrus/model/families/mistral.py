"""Mistral: Llama without biases; in early versions every layer has a sliding window."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig
from orthrus.model.families import common, one_window


def config(hf: Any) -> DecoderConfig:
    """Translate a Mistral config."""
    return common(hf, per_layer=tuple(map(LayerConfig, one_window(hf))))
