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


def in_vectors(codes_OGI: Tensor, bits: int, interleave: int) -> Tensor:
    """Codes [O, G, 32], uint8, of groups of 32 inputs as `c/group_codes.h` reads them: [O / 16, G, bytes].

    `interleave` inputs of an output lie next to each other.
    """
    panels = codes_OGI.unflatten(0, (-1, 16))
    if interleave == 4:
        vectors = panels.unflatten(-1, (8, 4)).permute(0, 2, 3, 1, 4).flatten(3)
    else:
        halves = panels.unflatten(1, (2, 8)).unflatten(-1, (4, 8))
        vectors = halves.permute(0, 3, 4, 1, 2, 5).flatten(4).flatten(2, 3)
    if bits == 8:
        return vectors.flatten(2)
    parts = [vectors[:, :, ::2] & 15 | vectors[:, :, 1::2] << 4]
    places = 8 // (bits - 4) if bits > 4 else 0
    for upper in (vectors >> 4).split(places, dim=2) if places else ():
        shifts = torch.arange(0, 8, bits - 4, dtype=torch.uint8)[:, None]
        parts.append((upper << shifts).sum(dim=2, keepdim=True, dtype=torch.uint8))
    return torch.cat([part.flatten(2) for part in parts], dim=-1)
