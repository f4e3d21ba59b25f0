"""StableLM: LayerNorm, partial rotary embeddings; in some versions norms of heads, and attention beside the MLP."""

from __future__ import annotations

from typing import Any

from orthrus.decoder_config import DecoderConfig
from orthrus.model.families import common, rotary_dim

NAMES = {"q_norm": "q_layernorm", "k_norm": "k_layernorm"}
"""Its names of tensors, by the usual ones."""


def config(hf: Any) -> DecoderConfig:
    """Translate a StableLM config."""
    return common(
        hf,
        norm_eps=hf.layer_norm_eps,
        per_layer=(),
        norm_centred=True,
        norm_bias=True,
        rotary_dim=rotary_dim(hf),
        qkv_bias=hf.use_qkv_bias,
        qk_norm="heads" if hf.qk_layernorm else None,
        parallel=hf.use_parallel_residual,
    )
