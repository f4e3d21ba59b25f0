"""K-quants, as GGUF files hold them: super-blocks of 256 inputs whose groups have scales of six or eight bits.

Q4_K and Q5_K have eight groups of 32 inputs, each with a scale and a minimum; Q6_K has sixteen of 16 inputs with a
scale alone. The scales of a super-block are integers in units of one fp16 number, its minima in units of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.bit_fields import fields, in_fields, in_quads, in_vectors

SUPER_BLOCK = 256
K_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
"""The supported types, and the bytes of a super-block."""
_GROUPS, _PANEL_OUTPUTS = 8, 16


@dataclass(frozen=True)
class IntegerGroups:
    """A matrix whose codes are multiplied as integers: codes [O, S, n] of the n inputs that share a scale, 32 or 16.

    scales [O, S], fp32. A weight is scale * (code - zero), or scale * code + min where there are minima [O, S].
    """

    codes: Tensor
    zero: int
    scales: Tensor
    mins: Tensor | None


@dataclass(frozen=True)
class KQuantized:
    """A matrix [O, I] of one of the types in `K_BYTES`: raw [O, I / 256, bytes of a super-block], as stored."""

    type: str
    raw: Tensor

    @property
    def d(self) -> Tensor:
        """The unit of the scales [O, I / 256], fp16."""
        return self._halves(208 if self.type == "Q6_K" else 0)

    @property
    def dmin(self) -> Tensor:
        """The unit of the minima [O, I / 256], fp16; zero in Q6_K."""
        return torch.zeros_like(self.d) if self.type == "Q6_K" else self._halves(2)

    @property
    def units(self) -> tuple[Tensor, ...]:
        """What all weights are multiples and sums of: they are finite where these are."""
        return (self.d,) if self.type == "Q6_K" else (self.d, self.dmin)

    @property
    def group_scales(self) -> Tensor:
        """[O, I / 256, 8, 2], two bytes for every 32 inputs: their scale and minimum (uint8), in Q6_K the scales of the
        first and of the last 16 of them (int8)."""
        if self.type == "Q6_K":
            return self.raw[..., 192:208].view(torch.int8).unflatten(-1, (_GROUPS, 2))
        scales, mins, both = self.raw[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
        scales = torch.cat((scales & 63, (both & 15) | (scales >> 2 & 48)), dim=-1)
        mins = torch.cat((mins & 63, (both >> 4) | (mins >> 2 & 48)), dim=-1)
        return torch.stack((scales, mins), dim=-1)

    @property
    def codes(self) -> Tensor:
        """[O, I / 256, 8, 32], uint8 below 16, 32 or 64; code 32 of Q6_K stands for zero."""
        if self.type == "Q6_K":
            low = fields(self.raw[..., :128].unflatten(-1, (2, 64)), 4).unflatten(-1, (2, 32)).flatten(-4, -2)
            return low | fields(self.raw[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-3, -2) << 4
        low = fields(self.raw[..., -128:].unflatten(-1, (4, 32)), 4).flatten(-3, -2)
        return low if self.type == "Q4_K" else low | fields(self.raw[..., 16:48], 1) << 4

    def group_scales_and_mins(self) -> tuple[Tensor, Tensor]:
        """Of Q4_K and Q5_K [O, I / 256, 8] each, fp32: exact products. A weight is scale * code - minimum."""
        scales, mins = self.group_scales.float().unbind(-1)
        return scales * self.d.float()[..., None], mins * self.dmin.float()[..., None]

    def values(self) -> Tensor:
        """The weights [O, I], fp32: every product is exact, so only the subtraction of the minimum rounds."""
        codes = self.codes.float()
        if self.type == "Q6_K":
            scales = self.group_scales.float() * self.d.float()[..., None, None]
            return ((codes - 32).unflatten(-1, (2, 16)) * scales[..., None]).flatten(1)
        scales, mins = self.group_scales_and_mins()
        return (codes * scales[..., None] - mins[..., None]).flatten(1)

    def packed_for_dots(self, *, paired: bool = False) -> Tensor:
        """[O / 16, I / 256, bytes]: packed super-blocks as `c/gemm_dequant.h` reads them; paired: see `in_fields`."""
        codes, bits = self.codes.flatten(1, 2), int(self.type[1])
        fields_PGB = in_quads(codes) if paired and bits == 4 else in_fields(codes, bits, paired=paired)
        return self._with_header(fields_PGB.unflatten(1, (-1, _GROUPS)))

    def packed_for_codes(self, *, interleave: int = 4) -> Tensor:
        """[O / 16, I / 256, bytes]: packed super-blocks whose codes are as `c/gemm_codes.h` reads them."""
        bytes_PGB = in_vectors(self.codes.flatten(1, 2), int(self.type[1]), interleave)
        return self._with_header(bytes_PGB.unflatten(1, (-1, _GROUPS)))

    def integers(self) -> IntegerGroups:
        """See `IntegerGroups`."""
        if self.type == "Q6_K":
            scales = self.group_scales.float() * self.d.float()[..., None, None]
            return IntegerGroups(self.codes.unflatten(-1, (2, 16)).flatten(1, 3), 32, scales.flatten(1), None)
        scales, mins = self.group_scales_and_mins()
        return IntegerGroups(self.codes.flatten(1, 2), 0, scales.flatten(1), -mins.flatten(1))

    def _with_header(self, codes: Tensor) -> Tensor:
        """[O / 16, I / 256, bytes], of codes [O / 16, I / 256, 8, ..]."""
        units = torch.stack((self.d, -self.dmin), dim=-1)  # [O, I / 256, 2]
        parts = [
            units.unflatten(0, (-1, _PANEL_OUTPUTS)).permute(0, 2, 3, 1),
            self.group_scales.unflatten(0, (-1, _PANEL_OUTPUTS)).permute(0, 2, 3, 4, 1),
            codes,
        ]
        return torch.cat([part.contiguous().view(torch.uint8).flatten(2) for part in parts], dim=-1)

    def _halves(self, first: int) -> Tensor:
        return self.raw[..., first : first + 2].contiguous().view(torch.float16)[..., 0]
