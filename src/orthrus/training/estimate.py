"""Estimates for a training step before weights are loaded: parameters, memory, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

from orthrus.model.decoder import Decoder
from orthrus.training.config import TrainConfig

MASTERS, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4
"""Bytes per trained parameter: the fp32 master, its gradient, two moments, and the average of the weights if there is
one."""


@dataclass(frozen=True)
class Estimate:
    """Trained and frozen parameters, memory in bytes, and upper bounds for one optimiser step.

    The bounds are `flops`, its floating-point operations, and `rows`, its supervised rows.
    """

    trained: int
    frozen: int
    weight_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    flops: float
    rows: int


def estimate(decoder: Decoder, config: TrainConfig) -> Estimate:
    """Estimate from a decoder on the meta device; activations are those saved for backward of one packed text.

    Raises ValueError where a draft head alone is trained.
    """
    if config.head_only:
        raise ValueError("a step is estimated for the training of a view: drop --head-only")
    sizes = {name: p.numel() for name, p in decoder.named_parameters()}
    trained = sum(size for name, size in sizes.items() if ".diffusion." in name)
    frozen = sum(sizes.values()) - trained
    shape, width = decoder.config, decoder.dtype.itemsize
    maps = {name: linear.shape[0] * linear.shape[1] for name, linear in decoder.linears().items()}
    head = maps.pop("head")
    if config.draft_vocabulary:
        head = config.draft_vocabulary * decoder.config.hidden_size
    view = sum(size for name, size in maps.items() if ".diffusion." in name)
    shared = sum(size for name, size in maps.items() if ".diffusion." not in name and ".ar." not in name)
    own = sum(size for name, size in maps.items() if ".ar." in name)
    text, rows = config.sequence_length, config.roots * config.block_size
    supervised = config.roots * config.trained_rows
    scores = 2 * shape.layers * shape.heads * shape.head_dim * rows * (text // 2 + config.block_size)
    flops = 2.0 * text * (own + shared)  # the frozen pass
    flops += (
        2.0 * rows * (2 * shared + 3 * view)
    )  # forward, and backward for the inputs and for the weights of the view
    flops += 6.0 * scores  # two products forward, four backward
    flops += 2.0 * head * (2 * supervised + min(supervised, text))  # student twice, teacher once per target
    per_row = 6 * shape.hidden_size + 4 * shape.intermediate_size + 4 * (shape.heads + shape.kv_heads) * shape.head_dim
    kept = rows * (per_row + shape.heads * (text // 4 + config.block_size)) + 2 * text * shape.kv_heads * shape.head_dim
    return Estimate(
        trained,
        frozen,
        width * (frozen + head) + MASTERS * trained,  # a CPU keeps the head transposed too
        (GRADIENT + MOMENTS + (AVERAGE if config.ema else 0)) * trained,
        width * shape.layers * kept,
        flops * config.sequences,
        supervised * config.sequences,
    )
