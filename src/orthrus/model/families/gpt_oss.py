"""gpt-oss: attention sinks, and experts with biases whose SwiGLU is clamped; every other layer has a window."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from orthrus.model.families import common, windows
from orthrus.model.ops import SWIGLU_LIMIT, SWIGLU_SLOPE

NAMES = {"gate": "router"}
"""Its names of tensors, by the usual ones."""
QUANTISED = ("mxfp4",)
"""The forms of its published weights that are expanded when they are read."""


def config(hf: Any) -> DecoderConfig:
    """Translate a gpt-oss config. Raises ValueError for other constants of its SwiGLU."""
    constants = getattr(hf, "swiglu_alpha", SWIGLU_SLOPE), getattr(hf, "swiglu_limit", SWIGLU_LIMIT)
    if constants != (SWIGLU_SLOPE, SWIGLU_LIMIT):
        raise ValueError(f"a SwiGLU with constants other than {SWIGLU_SLOPE} and {SWIGLU_LIMIT} is not supported")
    experts = ExpertsConfig(
        hf.num_local_experts, hf.num_experts_per_tok, hf.intermediate_size, normalised=True, router_bias=True
    )
    return common(
        hf,
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        mlp_bias=True,
        activation="clamped_swiglu",
        attention_sinks=True,
        experts=experts,
        per_layer=tuple(LayerConfig(window, experts=True) for window in windows(hf)),
    )
