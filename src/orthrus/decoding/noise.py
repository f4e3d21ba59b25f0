"""Addressed randomness: a value is a function of (seed, sample index, absolute position, purpose), of nothing else.

Neither batch slots nor the order of calls nor rejected drafts can change it, which is what makes sampled decoding
comparable token for token.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CACHED_POSITIONS = 64
_NEAR, _LOUD = 8.0, 4.0
"""A token whose score is more than `_NEAR` below the largest one, and whose noise is at most `_LOUD`, has the largest
sum of both only if the noise of the tokens near the top is below -4, which never happens in practice."""
_MARGIN = 0.01
"""Far more than the sums are rounded, relative to 1 or to the largest score."""
_HALVES = "<u4"
_LOUD_BITS = math.ceil(math.exp(-math.exp(-_LOUD)) * 2**32)
Bits = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
T = TypeVar("T")


class Purpose(IntEnum):
    """What a random value is for; part of its address."""

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


class Noise(Protocol):
    """A source of Gumbel noise. Injectable, so that tests can enumerate it."""

    def gumbel(self, position: int, vocab_size: int) -> Tensor:
        """Standard Gumbel noise [V], fp32, for choosing the token at `position`."""
        ...

    def gumbel_of(self, position: int, tokens: Sequence[int]) -> Tensor:
        """The values of `gumbel` for a few tokens, without the noise of the others."""
        ...

    def of_likely(self, position: int, scores: Floats) -> tuple[Ints, Floats, float]:
        """The tokens that are likely to have the largest sum of score and noise, ascending, and their noise. The
        largest of their sums is that of all tokens if it is above the bound, which comes third."""
        ...

    def uniform(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> float:
        """A uniform value in [0, 1) for one decision at `position`. Drafts add the numbers of their block and node,
        verdicts the place of a draft among its siblings."""
        ...


class AddressedNoise:
    """Streams of PCG64DXSM, seeded by the hash of an address. The noise of tokens comes from one stream, in which a
    position has a range of its own, and a token its place in that; each other value has a stream of its own."""

    def __init__(self, seed: int, sample_index: int = 0) -> None:
        self.seed, self.sample_index = seed, sample_index
        self._recent: dict[int, Bits] = {}
        self._recent_noise: dict[int, Tensor] = {}

    def gumbel(self, position: int, vocab_size: int) -> Tensor:
        """Standard Gumbel noise [V], fp32. A GPU adds that of a position to several rows, so recent noise is kept."""
        noise_V = self._recent_noise.get(position)
        if noise_V is None or len(noise_V) < vocab_size:
            noise_V = torch.from_numpy(_gumbel(self._bits(position, vocab_size)))
            _keep(self._recent_noise, position, noise_V)
        return noise_V[:vocab_size]

    def gumbel_of(self, position: int, tokens: Sequence[int]) -> Tensor:
        """See `Noise`. The stream is advanced to each token."""
        if position in self._recent:
            return torch.from_numpy(_gumbel(self._recent[position][np.array(tokens)]))
        bits = [self._words(position, token // 2, 1)[token % 2] for token in tokens]
        return torch.from_numpy(_gumbel(np.array(bits, np.uint32)))

    def of_likely(self, position: int, scores: Floats) -> tuple[Ints, Floats, float]:
        """See `Noise`. Most tokens are neither near the top nor is their noise large."""
        bits, top = self._bits(position, len(scores)), float(scores.max())
        tokens = np.flatnonzero((scores > top - _NEAR) | (bits > _LOUD_BITS))
        return tokens, _gumbel(bits[tokens]), top - _NEAR + _LOUD + _MARGIN * max(1.0, abs(top))

    def uniform(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> float:
        """See `Noise`. It is the first value of its stream."""
        return float(np.random.Generator(self._stream(position, purpose, block, node)).random())

    def _bits(self, position: int, vocab_size: int) -> Bits:
        """Random bits [V]. Draft and target of one position share them, so recent ones are kept."""
        bits = self._recent.get(position)
        if bits is None or len(bits) < vocab_size:
            bits = self._words(position, 0, -(-vocab_size // 2))
            _keep(self._recent, position, bits)
        return bits[:vocab_size]

    def _words(self, position: int, first: int, count: int) -> Bits:
        """The bits of 2 * count tokens of a position, from token 2 * first on."""
        stream, start = self._tokens
        stream.state = start
        stream.advance((position << 64) + first)
        return stream.random_raw(count).astype("<u8", copy=False).view(_HALVES)

    @cached_property
    def _tokens(self) -> tuple[np.random.PCG64DXSM, Any]:
        """The stream of the noise of tokens, and its state at the start."""
        stream = self._stream(0, Purpose.TOKEN)
        return stream, stream.state

    def _stream(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> np.random.PCG64DXSM:
        address = np.array([self.seed, self.sample_index, position, purpose, block, node], dtype="<u8")
        return np.random.PCG64DXSM(np.random.SeedSequence(address.view(_HALVES).tolist()))


def _keep(recent: dict[int, T], position: int, values: T) -> None:
    if position not in recent and len(recent) >= _CACHED_POSITIONS:
        del recent[min(recent)]
    recent[position] = values


def _gumbel(bits: Bits) -> Floats:
    uniform = (bits + 0.5) * 2.0**-32
    return (-np.log(-np.log(uniform))).astype(np.float32)


def draw_seed() -> int:
    """A fresh seed, to be reported wherever none was given."""
    return secrets.randbits(63)
