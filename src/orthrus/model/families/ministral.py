"""Ministral: Mistral in which all layers, or some, have a sliding window."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common


def config(hf: Any) -> DecoderConfig:
    """Translate a Ministral config."""
    return common(hf)
