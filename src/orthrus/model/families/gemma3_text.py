"""Gemma 3, text: Gemma 2 with q/k norms in place of soft caps, and a rotary table for the layers with a window."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig
from orthrus.model.families import rope, windows
from orthrus.model.families.gemma2 import gemma


def config(hf: Any) -> DecoderConfig:
    """Translate a Gemma 3 config. Raises ValueError for a soft cap in attention, which transformers ignores here."""
    if hf.attn_logit_softcapping is not None:
        raise ValueError("attn_logit_softcapping is not supported in a gemma3_text: its q and k are normed")
    kinds = ("full_attention", "sliding_attention")
    layers = zip(windows(hf), hf.layer_types, strict=True)
    return gemma(
        hf,
        ropes=tuple(rope(hf, hf.rope_parameters[kind]) for kind in kinds),
        per_layer=tuple(LayerConfig(window, rope=kinds.index(kind)) for window, kind in layers),
        qk_norm="head",
    )
