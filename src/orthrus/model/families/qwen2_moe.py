"""Qwen2-MoE: Qwen2 whose layers, all or some, have a mixture of experts and an expert that all rows share."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig, ExpertsConfig, LayerConfig
from orthrus.model.families import common, windows


def config(hf: Any) -> DecoderConfig:
    """Translate a Qwen2-MoE config."""
    experts = ExpertsConfig(
        hf.num_experts,
        hf.num_experts_per_tok,
        hf.moe_intermediate_size,
        hf.norm_topk_prob,
        shared_size=hf.shared_expert_intermediate_size,
    )
    dense, step = hf.mlp_only_layers, hf.decoder_sparse_step
    return common(
        hf,
        qkv_bias=hf.qkv_bias,
        experts=experts,
        per_layer=tuple(
            LayerConfig(window, experts=index not in dense and (index + 1) % step == 0)
            for index, window in enumerate(windows(hf))
        ),
    )
