"""EXAONE 4: norms after attention and MLP only; of a model with windows, layers without one have no positions."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig, RopeConfig
from orthrus.model.families import common, head_dim, rope, windows


def config(hf: Any) -> DecoderConfig:
    """Translate an EXAONE 4 config."""
    hybrid = hf.sliding_window is not None
    no_positions = (RopeConfig((0.0,) * (head_dim(hf) // 2)),) if hybrid else ()
    return common(
        hf,
        ropes=(rope(hf), *no_positions),
        per_layer=tuple(LayerConfig(window, rope=int(hybrid and window is None)) for window in windows(hf)),
        pre_norms=False,
        post_norms=True,
        qk_norm="head",
    )
