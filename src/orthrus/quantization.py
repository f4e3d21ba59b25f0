"""Group-quantised weights, as GGUF files hold them: 32 inputs of an output share a scale and, in Q4, a minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP, OUTPUTS = 32, 16
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""The supported types, and the bytes of a group: its scale, for Q4_1 its minimum, its codes."""


@dataclass(frozen=True)
class GroupQuantized:
    """A matrix [O, I] of one of the types in `BYTES`: raw [O, I / 32, bytes of a group], as stored."""

    type: str
    raw: Tensor

    @property
    def four_bits(self) -> bool:
        """Whether its codes have four bits, else eight."""
        return self.type != "Q8_0"

    @property
    def scales(self) -> Tensor:
        """[O, I / 32], fp16."""
        return self.raw[..., :2].contiguous().view(torch.float16)[..., 0]

    @property
    def mins(self) -> Tensor:
        """The value of code 0 [O, I / 32], fp16."""
        if self.type == "Q4_1":
            return self.raw[..., 2:4].contiguous().view(torch.float16)[..., 0]
        return self.scales * (-8 if self.four_bits else 0)

    @property
    def codes(self) -> Tensor:
        """[O, I / 32, 32], uint8 below 16 or int8."""
        stored = self.raw[..., BYTES[self.type] - (GROUP // 2 if self.four_bits else GROUP) :]
        return torch.cat((stored & 15, stored >> 4), dim=-1) if self.four_bits else stored.view(torch.int8)

    def values(self) -> Tensor:
        """The weights [O, I], fp32."""
        scaled = self.codes * self.scales.float()[..., None]
        return (scaled + self.mins.float()[..., None] if self.four_bits else scaled).flatten(1)

    def packed_for_tiles(self) -> Tensor:
        """[O / 32, I / 32, 2, bytes]: packed groups as `c/gemm_dequant_amx.h` reads them."""
        codes = self.codes.unflatten(0, (-1, OUTPUTS)).transpose(1, 2)
        if self.four_bits:
            codes = _in_words(codes.unflatten(2, (4, 4)), 3)
        return self._with_scales(codes).unflatten(0, (-1, 2)).transpose(1, 2)

    def packed_for_dots(self) -> Tensor:
        """[O / 16, I / 32, bytes]: packed groups as `c/gemm_dequant.h` reads them where there are no tiles."""
        eights = self.codes.unflatten(0, (-1, 4, 4)).unflatten(-1, (4, 8))
        eights = eights.permute(0, 3, 4, 2, 1, 5)  # [O / 16, I / 32, 4 of a word, 4, 4 outputs, 8]
        return self._with_scales(_in_words(eights, 2) if self.four_bits else eights)

    def packed_for_w4a8(self) -> Tensor:
        """[O / 32, I / 32, 2, bytes]: packed groups of four bits as `c/gemm_w4a8.h` reads them."""
        fours = self.codes.unflatten(0, (-1, OUTPUTS)).unflatten(-1, (4, 2, 4))
        fours = fours.permute(0, 2, 3, 1, 5, 4)  # [O / 16, I / 32, 4, 16 outputs, 4, 2 of a byte]
        return self._with_scales(fours[..., 0] | fours[..., 1] << 4).unflatten(0, (-1, 2)).transpose(1, 2)

    def _with_scales(self, codes: Tensor) -> Tensor:
        """[O / 16, I / 32, bytes], of codes [O / 16, I / 32, ..]."""
        scales = [self.scales, self.mins] if self.four_bits else [self.scales]
        parts = [codes, *(scale.unflatten(0, (-1, OUTPUTS)).transpose(1, 2) for scale in scales)]
        return torch.cat([part.contiguous().view(torch.uint8).flatten(2) for part in parts], dim=-1)

    @staticmethod
    def rounded(weight_OI: Tensor) -> GroupQuantized:
        """A matrix rounded to Q4_1: sixteen values per group, from its minimum to its maximum."""
        groups = weight_OI.float().unflatten(1, (-1, GROUP))
        lowest, highest = groups.aminmax(dim=-1)
        scales, mins = ((highest - lowest) / 15).half(), lowest.half()
        step = scales.float().clamp(min=1e-12)[..., None]
        codes = ((groups - mins.float()[..., None]) / step).round().clamp(0, 15).to(torch.uint8)
        half = GROUP // 2
        parts = [torch.stack((scales, mins), dim=-1).view(torch.uint8), codes[..., :half] | codes[..., half:] << 4]
        return GroupQuantized("Q4_1", torch.cat(parts, dim=-1))

    @staticmethod
    def joined(parts: Sequence[GroupQuantized | None]) -> GroupQuantized | None:
        """Matrices below one another; None where one is missing or of another type."""
        present = [part for part in parts if part is not None]
        if len(present) < len(parts) or len({part.type for part in present}) != 1:
            return None
        return GroupQuantized(present[0].type, torch.cat([part.raw for part in present]))


def _in_words(codes: Tensor, dim: int) -> Tensor:
    """Four codes along `dim` to a word of 16 bits."""
    first, *others = codes.to(torch.int16).unbind(dim)
    for place, code in enumerate(others, start=1):
        first = first | code << 4 * place
    return first
