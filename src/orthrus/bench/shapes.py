"""Models of real shapes with random weights, for measurements that do not depend on the values of the weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig

from orthrus.config import DiffusionConfig
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.runner.prepare import prepare
from orthrus.runner.runner import Runner

QWEN3 = {
    "qwen3-0.6b": (1024, 3072, 28, 16),
    "qwen3-1.7b": (2048, 6144, 28, 16),
    "qwen3-4b": (2560, 9728, 36, 32),
    "qwen3-8b": (4096, 12288, 36, 32),
}
"""Hidden size, MLP size, layers, query heads. All have 8 key/value heads of size 128 and 151,936 tokens."""


def random_runner(
    name: str,
    dtype: torch.dtype,
    *,
    block_size: int = 32,
    layers: int | None = None,
    device: str = "cpu",
    int8: bool = False,
) -> Runner:
    """A Qwen3 model with random weights and view, prepared for inference. Raises ValueError for an unknown name."""
    if name not in QWEN3:
        raise ValueError(f"there is no shape {name!r}; shapes: {', '.join(QWEN3)}")
    hidden, inner, depth, heads = QWEN3[name]
    config = AutoConfig.for_model(
        "qwen3", hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers or depth,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, vocab_size=151936,
        max_position_embeddings=40960, tie_word_embeddings=name in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"),
    )  # fmt: skip
    view = DiffusionConfig(block_size, 151669, block_size)
    decoder = Decoder(families.decoder_config(config), view, dtype, torch.device(device))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.02)
    return prepare(decoder, int8=int8, low_precision_drafts=False)
