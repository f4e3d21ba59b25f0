"""Codes of a few bits in bytes and words, as files and kernels hold them."""

from __future__ import annotations

import torch
from torch import Tensor


def fields(packed: Tensor, bits: int) -> Tensor:
    """[.., 8 / bits, n] of packed [.., n]: the bit fields of its bytes, the lowest first."""
    return torch.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], dim=-2)


def in_words(codes: Tensor, dim: int, bits: int) -> Tensor:
    """The codes along `dim` as the bit fields of a word of 16 bits, the first in the lowest."""
    parts = codes.to(torch.int16).unbind(dim)
    words = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        words |= part << bits * place
    return words
