"""Quantised weights, as GGUF files hold them: of types whose groups of 32 inputs share a scale and, but for Q8_0, a
minimum; of K-quants (see `k_quants`); and of several types, where a map is fused from matrices of different types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthrus.bit_fields import fields, in_fields, in_quads, in_vectors, in_words
from orthrus.k_quants import K_BYTES, IntegerGroups, KQuantized

GROUP, OUTPUTS = 32, 16
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
"""The supported types but for K-quants, and the bytes of a group: its scale, in Q4_1 and Q5_1 a minimum, its codes."""
ZERO_CODES = {"Q4_0": 8, "Q5_0": 16}
"""The code that stands for zero, of types with unsigned codes and no stored minimum."""
TYPES = (*BYTES, *K_BYTES)
"""The GGML types whose weights stay as their file stores them."""


@dataclass(frozen=True)
class GroupQuantized:
    """A matrix [O, I] of one of the types in `BYTES`: raw [O, I / 32, bytes of a group], as stored."""

    type: str
    raw: Tensor

    @property
    def bits(self) -> int:
        """Of a code: 4, 5 or 8."""
        return int(self.type[1])

    @property
    def stores_mins(self) -> bool:
        """Whether the file holds a minimum for each group."""
        return self.type.endswith("_1")

    @property
    def scales(self) -> Tensor:
        """[O, I / 32], fp16."""
        return self.raw[..., :2].contiguous().view(torch.float16)[..., 0]

    @property
    def mins(self) -> Tensor:
        """The value of code 0 [O, I / 32], fp16."""
        if self.stores_mins:
            return self.raw[..., 2:4].contiguous().view(torch.float16)[..., 0]
        return self.scales * -ZERO_CODES.get(self.type, 0)

    @property
    def units(self) -> tuple[Tensor, ...]:
        """What all weights are multiples and sums of: they are finite where these are."""
        return (self.scales, self.mins) if self.bits == 4 or self.stores_mins else (self.scales,)

    @property
    def codes(self) -> Tensor:
        """[O, I / 32, 32], uint8 below 16 or 32, or int8."""
        if self.bits == 8:
            return self.raw[..., -GROUP:].view(torch.int8)
        stored = self.raw[..., -GROUP // 2 :]
        low = torch.cat((stored & 15, stored >> 4), dim=-1)
        return low if self.bits == 4 else low | self._fifth_bits << 4

    @property
    def _fifth_bits(self) -> Tensor:
        """[O, I / 32, 32], each 0 or 1."""
        stored = self.raw[..., -GROUP // 2 - GROUP // 8 : -GROUP // 2]
        return fields(stored, 1).transpose(-1, -2).flatten(-2)

    def values(self) -> Tensor:
        """The weights [O, I], fp32."""
        codes, scales = self.codes, self.scales.float()[..., None]
        if self.bits == 5 and not self.stores_mins:
            return ((codes.float() - ZERO_CODES[self.type]) * scales).flatten(1)
        scaled = codes * scales
        return (scaled if self.bits == 8 else scaled + self.mins.float()[..., None]).flatten(1)

    def packed_for_tiles(self) -> Tensor:
        """[O / 32, I / 32, 2, bytes]: packed groups as `c/gemm_dequant_amx.h` reads them."""
        codes = self.codes.unflatten(0, (-1, OUTPUTS)).transpose(1, 2)
        if self.bits == 8:
            return self._with_scales(codes).unflatten(0, (-1, 2)).transpose(1, 2)
        words = [in_words((codes & 15).unflatten(2, (4, 4)), 3, 4)]
        if self.bits == 5:
            words.append(in_words(codes >> 4, 2, 1))
        return self._with_scales(*words).unflatten(0, (-1, 2)).transpose(1, 2)

    def packed_for_dots(self, *, paired: bool = False) -> Tensor:
        """[O / 16, I / 32, bytes]: packed groups as `c/gemm_dequant.h` reads them where there are no tiles; paired: see
        `in_fields`."""
        codes = self.codes.view(torch.uint8)
        if paired and self.bits == 4:
            return self._with_scales(in_quads(codes))
        return self._with_scales(in_fields(codes + 128 if self.bits == 8 else codes, self.bits, paired=paired))

    def packed_for_codes(self, *, interleave: int = 4, shift: int = 0) -> Tensor:
        """[O / 16, I / 32, bytes]: packed groups as `c/gemm_codes.h` reads them; codes of eight bits around `shift`."""
        codes = self.codes.view(torch.uint8)
        return self._with_scales(in_vectors(codes + shift if self.bits == 8 else codes, self.bits, interleave))

    def integers(self) -> IntegerGroups:
        """See `IntegerGroups`."""
        mins = self.mins.float() if self.bits == 4 or self.stores_mins else None
        return IntegerGroups(
            self.codes, 0 if mins is not None else ZERO_CODES.get(self.type, 0), self.scales.float(), mins
        )

    def _with_scales(self, *codes: Tensor) -> Tensor:
        """[O / 16, I / 32, bytes], of codes [O / 16, I / 32, ..]."""
        scales = [self.scales, self.mins] if self.bits == 4 or self.stores_mins else [self.scales]
        parts = [*codes, *(scale.unflatten(0, (-1, OUTPUTS)).transpose(1, 2) for scale in scales)]
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


StoredMatrix = GroupQuantized | KQuantized
"""A matrix of one of `TYPES`."""


@dataclass(frozen=True)
class Part:
    """A range of the outputs of a fused matrix; `quantized` is None where the file has another type than `TYPES`."""

    outputs: int
    quantized: StoredMatrix | None


@dataclass(frozen=True)
class FusedQuantized:
    """Matrices of more than one type below one another."""

    parts: tuple[Part, ...]

    @property
    def type(self) -> str:
        """The types of the parts, in order."""
        return "/".join(part.quantized.type if part.quantized else "plain" for part in self.parts)


Quantized = StoredMatrix | FusedQuantized


def from_rows(kind: str, rows: Tensor) -> StoredMatrix:
    """A matrix of one of `TYPES`, of the bytes of its rows."""
    if kind in BYTES:
        return GroupQuantized(kind, rows.unflatten(1, (-1, BYTES[kind])))
    return KQuantized(kind, rows.unflatten(1, (-1, K_BYTES[kind])))


def stored_matrices(quantized: Quantized | None) -> tuple[StoredMatrix, ...]:
    """The matrices that lie below one another; none where a part of them is not quantised."""
    parts = quantized.parts if isinstance(quantized, FusedQuantized) else ()
    matrices = [quantized] if isinstance(quantized, StoredMatrix) else [part.quantized for part in parts]
    return () if None in matrices else tuple(matrix for matrix in matrices if matrix is not None)


def fused(sources: Sequence[Part]) -> Quantized | None:
    """Matrices below one another, neighbours of one type as one part; None where none of them is quantised."""
    parts: list[Part] = []
    for part in sources:
        before, own = parts[-1] if parts else None, part.quantized
        if before and own and before.quantized and before.quantized.type == own.type:
            rows = torch.cat((before.quantized.raw, own.raw))
            parts[-1] = Part(before.outputs + part.outputs, replace(own, raw=rows))
        else:
            parts.append(part)
    if len(parts) == 1:
        return parts[0].quantized
    return FusedQuantized(tuple(parts)) if any(part.quantized for part in parts) else None
