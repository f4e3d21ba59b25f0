"""Experts that a safetensors file holds in one tensor per layer, as gpt-oss does, under a name for each expert.

Gates and ups alternate. Matrices are stored inputs first, or in MXFP4: groups of 32 values of four bits along the
inputs, two in a byte, with the exponent of a power of two for each group. Both give exact values in bf16.

Shapes: X experts, O outputs, I inputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.checkpoint.tensors import SafetensorFiles, TensorFile

STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)_proj(_bias|_blocks|_scales)?")
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a value in MXFP4 stand for; the highest is its sign."""
EXPONENT_OF_ONE, GROUP_BYTES, GROUP = 127, 16, 32
OUTPUTS = {"gate_up": {"gate": slice(0, None, 2), "up": slice(1, None, 2)}, "down": {"down": slice(None)}}
"""Which outputs of a stored tensor belong to which projection."""
MAX_EXPERTS = 1024
"""More than any model has; a damaged header must not cause as many names as it claims."""


@dataclass(frozen=True)
class _Part:
    """Where the tensor of one expert is: its number in the tensor `stored`, and which of its outputs."""

    stored: str
    expert: int
    outputs: slice


class UnstackedFiles:
    """A `TensorFile` in which each expert has tensors of its own; all others are as `files` holds them."""

    def __init__(self, files: SafetensorFiles) -> None:
        self.path, self._files = files.path, files
        self._parts: dict[str, _Part] = {}
        self._plain: list[str] = []
        for name, entry in files.entries.items():
            match = STACKED.fullmatch(name)
            if match is None or len(entry.shape) < 2 or entry.shape[0] > MAX_EXPERTS:
                self._plain.append(name)
                continue
            experts, which, suffix = match.groups()
            kind = "bias" if suffix == "_bias" else "weight"
            count = entry.shape[0] if suffix != "_scales" else 0
            for expert in range(count):
                for half, outputs in OUTPUTS[which].items():
                    self._parts[f"{experts}.{expert}.{half}_proj.{kind}"] = _Part(name, expert, outputs)

        if both := self._parts.keys() & {*self._plain}:
            raise ValueError(f"{self.path}: tensor {sorted(both)[0]} is there alone and in a tensor of all experts")

    @property
    def names(self) -> list[str]:
        """All tensor names, those of single experts included."""
        return [*self._plain, *self._parts]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor. Raises ValueError where it is missing or no tensor of weights."""
        part = self._parts.get(name)
        if part is None:
            return self._files.shape(name)
        if part.stored.endswith("_blocks"):
            outputs, inputs = self._size_of_blocks(part.stored)
            return len(range(outputs)[part.outputs]), inputs
        _, *others, outputs = self._files.shape(part.stored)
        return len(range(outputs)[part.outputs]), *others

    def tensor(self, name: str) -> Tensor:
        """The values of one tensor, O x I where a matrix is stored inputs first. Raises ValueError as `shape` does."""
        part = self._parts.get(name)
        if part is None:
            return self._files.tensor(name)
        stored = self._files.part(part.stored, part.expert)
        if part.stored.endswith("_blocks"):
            scales = self._files.part(f"{part.stored.removesuffix('_blocks')}_scales", part.expert)
            return dequantized(stored[part.outputs], scales[part.outputs])
        return stored[part.outputs] if stored.dim() == 1 else stored[:, part.outputs].T.contiguous()

    def _size_of_blocks(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of the matrices of a tensor in MXFP4."""
        blocks, scales = (self._files.entry(name.removesuffix("_blocks") + end) for end in ("_blocks", "_scales"))
        fits = len(blocks.shape) == 4 and blocks.shape[3] == GROUP_BYTES and blocks.shape[:3] == scales.shape
        if not fits or {blocks.dtype, scales.dtype} != {"U8"}:
            raise ValueError(
                f"{self.path}: tensor {name} is {blocks.dtype} {list(blocks.shape)} with scales {scales.dtype}"
                f" {list(scales.shape)}; expected U8 [experts, outputs, groups, {GROUP_BYTES}] and their scales"
            )
        return blocks.shape[1], blocks.shape[2] * GROUP

    def group_quantized(self, name: str) -> None:
        """None."""
        del name

    def digest(self, *, tied_head: bool) -> str:
        """That of the tensors as stored."""
        return self._files.digest(tied_head=tied_head)


def unstacked(files: SafetensorFiles) -> TensorFile:
    """The files as they are, or with a tensor for each expert where they stack them."""
    return UnstackedFiles(files) if any(map(STACKED.fullmatch, files.names)) else files


def dequantized(blocks_OGB: Tensor, scales_OG: Tensor) -> Tensor:
    """A matrix [O, I] in bf16 from MXFP4: bytes [O, I / 32, 16], lower four bits first, and exponents [O, I / 32]."""
    codes_OGBN = torch.stack((blocks_OGB & 15, blocks_OGB >> 4), dim=-1)
    magnitudes = torch.tensor(VALUES, dtype=torch.bfloat16)[(codes_OGBN & 7).int()]
    signed_OGV = torch.where(codes_OGBN > 7, -magnitudes, magnitudes).flatten(2)
    return torch.ldexp(signed_OGV, scales_OG.int()[..., None] - EXPONENT_OF_ONE).flatten(1)
