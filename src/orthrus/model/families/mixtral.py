"""Mixtral: Mistral with a mixture of experts in place of every MLP."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from orthrus.model.families import common, one_window

NAMES = {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Its names of tensors, by the usual ones."""


def config(hf: Any) -> DecoderConfig:
    """Translate a Mixtral config."""
    experts = ExpertsConfig(hf.num_local_experts, hf.num_experts_per_tok, hf.intermediate_size, normalised=True)
    layers = tuple(LayerConfig(window, experts=True) for window in one_window(hf))
    return common(hf, experts=experts, per_layer=layers)
