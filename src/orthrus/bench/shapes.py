"""Models of real shapes with random weights, for measurements that do not depend on the values of the weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import AutoConfig

from orthrus.config import DiffusionConfig
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.runner.prepare import prepare
from orthrus.runner.runner import Runner


class Shape(NamedTuple):
    """The sizes of a Qwen3 model, its layers and query heads. tied: whether the head is the embedding."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 151936
    tied: bool = True


QWEN3 = {
    "qwen3-0.6b": Shape(1024, 3072, 28, 16),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16),
    "qwen3-4b": Shape(2560, 9728, 36, 32),
    "qwen3-8b": Shape(4096, 12288, 36, 32, tied=False),
}
TINY = Shape(64, 96, 1, 4, 2, 16, 320)
"""For dry runs of benchmarks."""


def random_decoder(shape: Shape, dtype: torch.dtype, device: str = "cpu", *, block_size: int = 32) -> Decoder:
    """A decoder with random weights and view."""
    config = AutoConfig.for_model(
        "qwen3", hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocab, max_position_embeddings=40960, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    view = DiffusionConfig(block_size, shape.vocab - 267, block_size)
    decoder = Decoder(families.decoder_config(config), view, dtype, torch.device(device))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.02)
    return decoder


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
    shape = QWEN3[name]
    decoder = random_decoder(shape._replace(layers=layers or shape.layers), dtype, device, block_size=block_size)
    return prepare(decoder, int8=int8, low_precision_drafts=False)
