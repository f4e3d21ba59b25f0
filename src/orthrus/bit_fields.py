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


_FIELD_AT = {
    4: range(0, 32, 4), 5: (7, 12, 17, 22, 27, 0), 6: range(0, 30, 6), 8: (7, 15, 23, 31),
}  # fmt: skip
"""The lowest bit of each field of a word, by the bits of a code."""
_SPARE_AT = {5: 5, 6: 30}


def in_fields(codes_OGI: Tensor, bits: int, *, paired: bool) -> Tensor:
    """Codes [O, G, 32], uint8, as `c/code_fields.h` describes them: [O / 16, G, bytes]. paired: its LANES_IN_PAIRS."""
    panels = codes_OGI.unflatten(0, (-1, 16)).long()
    if paired:
        pairs = panels.unflatten(1, (2, 8)).unflatten(-1, (16, 2))  # [O / 16, 2 halves, 8 outputs, G, 16, 2 inputs]
        halves = pairs.permute(0, 3, 4, 1, 2, 5).flatten(4).flatten(2, 3)
    else:
        halves = panels.permute(0, 2, 3, 1)
    places, whole = _FIELD_AT[bits], bits * len(_FIELD_AT[bits])
    words = torch.zeros_like(halves[:, :, :bits])
    for place, field in zip(places, halves[:, :, :whole].unflatten(2, (bits, -1)).unbind(3), strict=True):
        words |= field << place
    if whole < 32:
        spare = halves[:, :, 30] | halves[:, :, 31] << bits
        shifts = torch.arange(0, 2 * bits, 2)[:, None]
        words |= (spare[:, :, None] >> shifts & 3) << _SPARE_AT[bits]
    words |= words >> 32  # the last field of eight bits goes on in the lowest bits
    return words.to(torch.int32).contiguous().view(torch.uint8).flatten(2)


def in_quads(codes_OGI: Tensor) -> Tensor:
    """Codes of four bits [O, G, 32] as `c/dequantize_quads.h` reads them: [O / 16, G, bytes]."""
    eights = codes_OGI.unflatten(0, (-1, 4, 4)).unflatten(-1, (4, 8))
    words = in_words(eights.permute(0, 3, 4, 2, 1, 5), 2, 4)  # [O / 16, G, 4 outputs, 4 outputs, 8]
    return words.contiguous().view(torch.uint8).flatten(2)
