"""Gumbel noise of tokens, and sampling by it: the reference implementation, in numpy.

To sample a token is to take the largest sum of logit / temperature and noise. A token whose logit is more than `NEAR`
temperatures below the largest of its row, and whose noise is at most `LOUD`, has the largest sum only if the noise of
the tokens near the top is below -3, which never happens in practice. So noise is computed only for tokens that are near
or loud; where the largest sum is not certain to be among theirs, the noise of all is needed.

R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEAR, LOUD = 8.0, 5.0
LOUD_BITS = math.ceil(math.exp(-math.exp(-LOUD)) * 2**32)
"""The random bits above which noise is loud: those of 0.7 % of the tokens."""
MARGIN = 1e-4
"""Far more than the sums are rounded, relative to 1 or to the largest logit over the temperature."""
SQRT_HALF = 1.4142135623730951 / 2
LN2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""The natural logarithm of 2 in two parts, of which the first has few bits."""
COEFFICIENTS = (
    1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01, 2.857142874366239149e-01,
    3.999999999940941908e-01, 6.666666666666735130e-01,
)  # fmt: skip
Bits = NDArray[np.uint32]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
T = TypeVar("T")


class Stream(NamedTuple):
    """The start of a stream of PCG64DXSM: its state and its increment, of 128 bits each. Every position has a range of
    2^64 words, each word the bits of two tokens."""

    state: int
    increment: int


class RandomBits(Protocol):
    """Where random bits come from."""

    @property
    def stream(self) -> Stream:
        """The stream of the bits."""
        ...

    def bits(self, position: int, vocabulary: int) -> Bits:
        """Random bits [V] of a position."""
        ...

    def remembered(self, kind: str, vocabulary: int, position: int, make: Callable[[], T]) -> T:
        """What `make` returned the first time that it was asked for, while the position is a recent one."""
        ...


class SamplingKernels(Protocol):
    """What computes `largest_sum` and `noisy_rows`: this module, or the kernels of a backend."""

    def largest_sum(self, logits_1V: Tensor, temperature: float, random: RandomBits, position: int) -> int | None:
        """See below."""
        ...

    def noisy_rows(self, logits_RV: Tensor, temperature: float, random: RandomBits, position: int) -> Tensor:
        """See below."""
        ...


def gumbel(bits: Bits) -> Floats:
    """Standard Gumbel noise of random bits. Each operation is rounded as IEEE 754 says, so C gives the same bits."""
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-32
    return (-_log(-_log(uniform))).astype(np.float32)


def largest_sum(logits_1V: Tensor, temperature: float, random: RandomBits, position: int) -> int | None:
    """The token with the largest sum of logit / temperature and noise, the first of equals; None if it is not certain
    to be among those whose noise is computed."""
    logits_V, bits_V = logits_1V[0].float().cpu().numpy(), random.bits(position, logits_1V.shape[1])
    scale, top = np.float32(temperature), np.float32(logits_V.max())  # NaN if any is NaN
    if not np.isfinite(top):
        return None
    tokens = _near_or_loud(logits_V, bits_V, temperature)
    sums = logits_V[tokens] / scale + gumbel(bits_V[tokens])
    best = int(sums.argmax())
    return int(tokens[best]) if sums[best] > certain(float(top) / temperature) else None


def certain(top: float) -> float:
    """The sum above which a token has the largest one, where `top` is the largest logit over the temperature."""
    return top - NEAR + LOUD + MARGIN * max(1.0, abs(top))


def noisy_rows(logits_RV: Tensor, temperature: float, random: RandomBits, position: int) -> Tensor:
    """Scores [R, V] of rows of drafts, fp32, of which row i is for `position` + i: the logits, with the temperature
    times the noise of the tokens that may win with it."""
    scores_RV = logits_RV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for row, scores_V in enumerate(scores_RV.numpy()):
        bits_V = random.bits(position + row, len(scores_V))
        tokens = _near_or_loud(scores_V, bits_V, temperature)
        scores_V[tokens] += np.float32(temperature) * gumbel(bits_V[tokens])
    return scores_RV


def _near_or_loud(logits_V: Floats, bits_V: Bits, temperature: float) -> NDArray[np.intp]:
    """None is near where a logit is NaN or the largest is not finite."""
    top = logits_V.max()
    border = top - np.float32(NEAR * temperature) if np.isfinite(top) else np.float32(np.inf)
    return np.flatnonzero((logits_V > border) | (bits_V > LOUD_BITS))


def _log(x: Doubles) -> Doubles:
    """The natural logarithm of normal numbers (fdlibm)."""
    m, e = np.frexp(x)
    small = m < SQRT_HALF
    m, exponent = np.where(small, 2 * m, m), (e - small).astype(np.float64)
    f = m - 1.0
    s, half = f / (2.0 + f), 0.5 * f * f
    z = s * s
    r: Any = 1.479819860511658591e-01
    for coefficient in COEFFICIENTS:
        r = z * r + coefficient
    result: Doubles = exponent * LN2[0] - ((half - (s * (half + z * r) + exponent * LN2[1])) - f)
    return result
