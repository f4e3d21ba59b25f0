"""Addressed randomness: a value is a function of (seed, sample index, absolute position, purpose), of nothing else.

Neither batch slots nor the order of calls nor rejected drafts can change it, which is what makes sampled decoding
comparable token for token.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from enum import IntEnum
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orthrus.gumbel import Bits, Floats, RandomBits, Stream, gumbel

_CACHED_POSITIONS = 64
_FEW = 64
"""Up to this many tokens, it is faster to draw the noise of each than that of the whole vocabulary."""
_HALVES = "<u4"
Ints = npt.NDArray[np.intp]
T = TypeVar("T")


class Purpose(IntEnum):
    """What a random value is for; part of its address."""

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


class Noise(Protocol):
    """A source of Gumbel noise. Injectable, so that tests can enumerate it.

    random: the bits of which the noise of tokens is made, where it is made of bits.
    """

    @property
    def random(self) -> RandomBits | None:
        """See above."""
        ...

    def gumbel(self, position: int, vocab_size: int) -> Tensor:
        """Standard Gumbel noise [V], fp32, for choosing the token at `position`."""
        ...

    def gumbel_of(self, position: int, tokens: Ints) -> Floats:
        """The values of `gumbel` for a few tokens, without the noise of the others."""
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
        self._recent: dict[tuple[str, int], dict[int, Any]] = {}

    @property
    def random(self) -> RandomBits:
        """See `Noise`."""
        return self

    def gumbel(self, position: int, vocab_size: int) -> Tensor:
        """Standard Gumbel noise [V], fp32. A GPU adds that of a position to several rows, so recent noise is kept."""
        bits = partial(self.bits, position, vocab_size)
        return self.remembered("noise", vocab_size, position, lambda: torch.from_numpy(gumbel(bits())))

    def gumbel_of(self, position: int, tokens: Ints) -> Floats:
        """See `Noise`. The stream is advanced to each token."""
        bits = [self._words(position, token // 2, 1)[token % 2] for token in tokens.tolist()]
        return gumbel(np.array(bits, np.uint32))

    def uniform(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> float:
        """See `Noise`. It is the first value of its stream."""
        return float(np.random.Generator(self._stream(position, purpose, block, node)).random())

    @cached_property
    def stream(self) -> Stream:
        """The stream of the noise of tokens."""
        _, start = self._tokens
        return Stream(start["state"]["state"], start["state"]["inc"])

    def bits(self, position: int, vocab_size: int) -> Bits:
        """Random bits [V]. Draft and target of one position share them, so recent ones are kept."""
        words = -(-vocab_size // 2)
        return self.remembered("bits", vocab_size, position, lambda: self._words(position, 0, words)[:vocab_size])

    def remembered(self, kind: str, vocab_size: int, position: int, make: Callable[[], T]) -> T:
        """See `RandomBits`."""
        recent = self._recent.setdefault((kind, vocab_size), {})
        if position not in recent:
            if len(recent) >= _CACHED_POSITIONS:
                del recent[min(recent)]
            recent[position] = make()
        found: T = recent[position]
        return found

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


def add_noise_of_few(scores_V: Tensor, noise: Noise, position: int) -> bool:
    """Add the noise of a row, in place, if few tokens have a score above -inf, and return whether they have. Tokens at
    -inf cannot win: they go without noise."""
    tokens = _kept(scores_V)
    if len(tokens) > _FEW:
        return False
    if len(tokens) > 1:
        scores_V[tokens] += torch.from_numpy(noise.gumbel_of(position, tokens.cpu().numpy())).to(scores_V.device)
    return True


def _kept(scores_V: Tensor) -> Tensor:
    """The tokens above -inf."""
    if scores_V.is_cpu:  # several times faster than torch
        return torch.from_numpy(np.flatnonzero(scores_V.numpy() > -np.inf))
    return (scores_V > -torch.inf).nonzero()[:, 0]


def draw_seed() -> int:
    """A fresh seed, to be reported wherever none was given. Below 2^53, JavaScript reads it exactly from JSON."""
    return secrets.randbits(53)
