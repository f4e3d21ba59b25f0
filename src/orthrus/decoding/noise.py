"""Addressed randomness: a value is a function of (seed, sample index, absolute position, purpose), of nothing else.

Neither batch slots nor the order of calls nor rejected drafts can change it, which is what makes sampled decoding
comparable token for token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CACHED_POSITIONS = 64
_VALUES_PER_STEP = 4


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

    def uniform(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> float:
        """A uniform value in [0, 1) for one decision at `position`. Drafts add the numbers of their block and node,
        verdicts the place of a draft among its siblings."""
        ...


class AddressedNoise:
    """Philox counter noise: key = (seed, sample index), counter = (node, draft block, position, purpose)."""

    def __init__(self, seed: int, sample_index: int = 0) -> None:
        self.seed, self.sample_index = seed, sample_index
        self._recent: dict[int, Tensor] = {}

    def gumbel(self, position: int, vocab_size: int) -> Tensor:
        """Standard Gumbel noise [V], fp32. Draft and target of one position share it, so recent rows are kept."""
        noise_V = self._recent.get(position)
        if noise_V is None or len(noise_V) < vocab_size:
            if len(self._recent) >= _CACHED_POSITIONS:
                del self._recent[min(self._recent)]
            noise_V = self._recent[position] = _gumbel(self._generator(position, Purpose.TOKEN).random(vocab_size))
        return noise_V[:vocab_size]

    def gumbel_of(self, position: int, tokens: Sequence[int]) -> Tensor:
        """See `Noise`. A step of the counter gives the values of four tokens, so any token's can be drawn directly."""
        if position in self._recent:
            return self._recent[position][torch.tensor(tokens)]
        generator, uniform = self._generator(position, Purpose.TOKEN), np.empty(len(tokens))
        state = generator.bit_generator.state
        for index, token in enumerate(tokens):
            state["state"]["counter"][0] = token // _VALUES_PER_STEP
            generator.bit_generator.state = state
            uniform[index] = generator.random(_VALUES_PER_STEP)[token % _VALUES_PER_STEP]
        return _gumbel(uniform)

    def uniform(self, position: int, purpose: Purpose, block: int = 0, node: int = 0) -> float:
        """See `Noise`. It is the first value of its step of the counter."""
        return float(self._generator(position, purpose, block, node).random())

    def _generator(self, position: int, purpose: Purpose, block: int = 0, step: int = 0) -> np.random.Generator:
        counter = np.array([step, block, position, purpose], dtype=np.uint64)
        key = np.array([self.seed, self.sample_index], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _gumbel(uniform: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy((-np.log(-np.log(np.maximum(uniform, 2.0**-54)))).astype(np.float32))


def draw_seed() -> int:
    """A fresh seed, to be reported wherever none was given."""
    return secrets.randbits(63)
