"""Weights in groups, as GGUF files hold them: 32 inputs of an output share a scale and, of four bits, a least value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP, OUTPUTS = 32, 16
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""The types that are known here, and the bytes of a group: its scale, of Q4_1 its least value, its numbers."""


@dataclass(frozen=True)
class Blocks:
    """A matrix [O, I] of one of the types in `BYTES`: raw [O, I / 32, bytes of a group], as stored."""

    type: str
    raw: Tensor

    @property
    def four_bits(self) -> bool:
        """Whether its numbers have four bits, else eight."""
        return self.type != "Q8_0"

    @property
    def scales(self) -> Tensor:
        """[O, I / 32], fp16."""
        return self.raw[..., :2].contiguous().view(torch.float16)[..., 0]

    @property
    def least(self) -> Tensor:
        """What a number 0 stands for [O, I / 32], fp16."""
        if self.type == "Q4_1":
            return self.raw[..., 2:4].contiguous().view(torch.float16)[..., 0]
        return self.scales * (-8 if self.four_bits else 0)

    @property
    def numbers(self) -> Tensor:
        """[O, I / 32, 32], uint8 below 16 or int8."""
        stored = self.raw[..., BYTES[self.type] - (GROUP // 2 if self.four_bits else GROUP) :]
        return torch.cat((stored & 15, stored >> 4), dim=-1) if self.four_bits else stored.view(torch.int8)

    def values(self) -> Tensor:
        """The weights [O, I], fp32."""
        scaled = self.numbers * self.scales.float()[..., None]
        return (scaled + self.least.float()[..., None] if self.four_bits else scaled).flatten(1)

    def packed(self) -> Tensor:
        """[O / 32, I / 32, 2, bytes]: blocks as `c/tile_blocks.h` reads them."""
        numbers = self.numbers.unflatten(0, (-1, OUTPUTS)).transpose(1, 2)
        if self.four_bits:
            numbers = _in_words(numbers.unflatten(2, (4, 4)), 3)
        return self._with_scales(numbers).unflatten(0, (-1, 2)).transpose(1, 2)

    def packed_in_quads(self) -> Tensor:
        """[O / 16, I / 32, bytes]: blocks as `c/blocks.h` reads them where there are no tiles."""
        eights = self.numbers.unflatten(0, (-1, 4, 4)).unflatten(-1, (4, 8))
        eights = eights.permute(0, 3, 4, 2, 1, 5)  # [O / 16, I / 32, 4 of a word, 4, 4 outputs, 8]
        return self._with_scales(_in_words(eights, 2) if self.four_bits else eights)

    def packed_in_bytes(self) -> Tensor:
        """[O / 32, I / 32, 2, bytes]: blocks of four bits as `c/grouped.h` reads them."""
        fours = self.numbers.unflatten(0, (-1, OUTPUTS)).unflatten(-1, (4, 2, 4))
        fours = fours.permute(0, 2, 3, 1, 5, 4)  # [O / 16, I / 32, 4, 16 outputs, 4, 2 of a byte]
        return self._with_scales(fours[..., 0] | fours[..., 1] << 4).unflatten(0, (-1, 2)).transpose(1, 2)

    def _with_scales(self, numbers: Tensor) -> Tensor:
        """[O / 16, I / 32, bytes], of numbers [O / 16, I / 32, ..]."""
        scales = [self.scales, self.least] if self.four_bits else [self.scales]
        parts = [numbers, *(scale.unflatten(0, (-1, OUTPUTS)).transpose(1, 2) for scale in scales)]
        return torch.cat([part.contiguous().view(torch.uint8).flatten(2) for part in parts], dim=-1)

    @staticmethod
    def rounded(weight_OI: Tensor) -> Blocks:
        """A matrix rounded to Q4_1: in every group, sixteen values from its least to its largest."""
        groups = weight_OI.float().unflatten(1, (-1, GROUP))
        least, largest = groups.aminmax(dim=-1)
        scale, least = ((largest - least) / 15).half(), least.half()
        step = scale.float().clamp(min=1e-12)[..., None]
        numbers = ((groups - least.float()[..., None]) / step).round().clamp(0, 15).to(torch.uint8)
        half = GROUP // 2
        parts = [torch.stack((scale, least), dim=-1).view(torch.uint8), numbers[..., :half] | numbers[..., half:] << 4]
        return Blocks("Q4_1", torch.cat(parts, dim=-1))

    @staticmethod
    def joined(parts: Sequence[Blocks | None]) -> Blocks | None:
        """Matrices below one another; None where one is missing or of another type."""
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or len({part.type for part in found}) != 1:
            return None
        return Blocks(found[0].type, torch.cat([part.raw for part in found]))


def _in_words(numbers: Tensor, dim: int) -> Tensor:
    """Four numbers along `dim` to a word of 16 bits."""
    first, *others = numbers.to(torch.int16).unbind(dim)
    for place, number in enumerate(others, start=1):
        first = first | number << 4 * place
    return first
