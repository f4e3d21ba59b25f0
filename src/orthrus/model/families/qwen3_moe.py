"""Qwen3-MoE: Qwen3 whose layers, all or some, have a mixture of experts in place of the MLP."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from orthrus.model.families import common, one_window


def config(hf: Any) -> DecoderConfig:
    """Translate a Qwen3-MoE config."""
    experts = ExpertsConfig(hf.num_experts, hf.num_experts_per_tok, hf.moe_intermediate_size, hf.norm_topk_prob)
    dense, step = hf.mlp_only_layers, hf.decoder_sparse_step
    return common(
        hf,
        qk_norm="head",
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        experts=experts,
        per_layer=tuple(
            LayerConfig(window, experts=index not in dense and (index + 1) % step == 0)
            for index, window in enumerate(one_window(hf))
        ),
    )
