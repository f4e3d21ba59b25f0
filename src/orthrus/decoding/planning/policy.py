"""The value of drafts: decoding as a semi-Markov decision process, solved for the most tokens per second.

- A decision is taken before every pass.
- State: where the drafts at hand come from: nowhere, a diffusion pass, or a block beside the AR rows of the last pass.
- Action: how many nodes to verify, in order of path probability, and how many blocks to compute beside them, at the
  likeliest ends of the accepted path; or a diffusion pass, which verifies nothing.
- Reward: the expected tokens of the pass, 1 + accepted drafts; 0 for a diffusion pass.
- Duration: the seconds of the pass, by the cost model.
- Transition: the next drafts come from a block if the accepted path ends at its root; else there are none.

With a rate of g tokens per second, rewards r, durations t and transitions P, the values v of the states, in tokens,
satisfy v = max(r - g t + P v). The best rate is the g at which the state without drafts has the value 0. An expected
number of accepted drafts is a sum of path probabilities, so few figures describe a source of drafts: its `Yield`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.planning.cost_model import CostModel

Array = NDArray[Any]
NODES = (0, 1, 2, 3, 4, 6, 7, 8, 12, 15, 16, 24, 31)
"""The numbers of nodes for which yields are kept: 7, 15 and 31 fill the tiles of a matrix unit with the anchor."""
MAX_BLOCKS = 4
"""The most blocks of a sequence beside the AR rows of a pass."""
RESTART = 0.01
"""The probability, per pass, that the sequence ends."""
STEPS, TOLERANCE = 24, 1e-6
"""The most steps of Newton's method, and the gain in tokens at which it ends."""


@dataclass(frozen=True)
class Yield:
    """What the drafts of a block hold: by the number of verified nodes, the expected number of accepted drafts [.., N],
    and the probability [.., N, J + 1] that the accepted path ends at one of the J likeliest ends."""

    accepted: Array
    covered: Array

    @staticmethod
    def of(parents: Sequence[int], probabilities: Sequence[float], kept_WM: Array | None = None) -> Yield:
        """The yield of a tree of M nodes with these path probabilities or, [W, ..], of the trees of the nodes that each
        row of `kept_WM` keeps (bool): those of a tree too."""
        if kept_WM is None:
            (found,) = Yield.of(parents, probabilities, np.ones((1, len(parents)), bool)).split()
            return found
        M, p_M, nodes = len(parents), np.array(probabilities, float), np.arange(len(parents))
        moves = np.zeros((M, M + 1))  # by node, how its verification moves the end of the path from its parent to it
        moves[nodes, np.array(parents, int) + 1] = -p_M
        moves[nodes, nodes + 1] = p_M
        verified_WNM = (kept_WM[:, None] & (kept_WM.cumsum(axis=1)[:, None] <= np.array(NODES)[:, None])) * 1.0
        ends = verified_WNM @ moves
        ends[..., 0] += 1.0
        likeliest = np.zeros((*ends.shape[:2], MAX_BLOCKS + 1))
        largest = np.sort(ends, axis=-1)[..., : -MAX_BLOCKS - 1 : -1]
        likeliest[..., 1 : largest.shape[-1] + 1] = largest
        return Yield(verified_WNM @ p_M, likeliest.clip(0.0).cumsum(axis=-1).clip(max=1.0))

    def split(self) -> list[Yield]:
        """The yields of several trees, each alone."""
        return [Yield(*parts) for parts in zip(self.accepted, self.covered, strict=True)]

    def towards(self, other: Yield, share: float) -> Yield:
        """The weighted mean of two yields."""
        return Yield(
            self.accepted + share * (other.accepted - self.accepted),
            self.covered + share * (other.covered - self.covered),
        )


@dataclass(frozen=True)
class Policy:
    """The best policy for blocks of `width` rows: its rate in tokens per second, and values in tokens. block_value: of
    a block whose root is the end of the accepted path. refresh_value: of the drafts of a diffusion pass."""

    rate: float = 0.0
    width: int = 0
    block_value: float = 0.0
    refresh_value: float = 0.0


def solve(
    fresh: Yield,
    beside: Yield,
    width: int,
    costs: CostModel,
    sharers: int,
    context: float,
    blocks: int = MAX_BLOCKS,
    *,
    refreshes: bool = True,
) -> Policy:
    """The best policy for blocks of one width.

    What drafting gains is convex in the rate and falls with it, and is 0 at the best rate. So Newton's method, begun at
    the rate of plain decoding, comes there from below in a few steps.

    fresh, beside: the yields of a diffusion pass and of a block beside AR rows. sharers: the sequences that share the
    cost of a pass. context: cached tokens per sequence. blocks: the most blocks beside AR rows. refreshes: whether
    there are diffusion passes.
    """
    without_keys, per_key = _pass_seconds(costs, sharers, width)
    seconds_NJ = (without_keys + context * per_key)[:, : blocks + 1]
    plain, drafting, keep = float(seconds_NJ[0, 0]), costs.diffuse(sharers, width, context) / sharers, 1 - RESTART
    reuse_NJ = 1 / (1 - keep * beside.covered[:, : blocks + 1])
    covered_NJ = keep * fresh.covered[:, : blocks + 1]
    beside_NJ, fresh_N1 = (1 + beside.accepted[:, None]) * reuse_NJ, 1 + fresh.accepted[:, None]
    per_block_NJ, rate = seconds_NJ * reuse_NJ, 1 / plain
    for _ in range(STEPS):
        block, block_slope = _largest(beside_NJ - rate * per_block_NJ, -per_block_NJ)
        if block < 0:
            block, block_slope = 0.0, 0.0
        drafts, slope = _largest(
            fresh_N1 - rate * seconds_NJ + covered_NJ * block, covered_NJ * block_slope - seconds_NJ
        )
        gains = [(drafts - rate * drafting, slope - drafting)] if refreshes else []
        if blocks:
            first = float(seconds_NJ[0, 1])
            gains.append((1 - rate * first + keep * block, keep * block_slope - first))
        gain, slope = max(gains)
        if gain < TOLERANCE:
            break
        rate -= gain / slope
    return Policy(rate, width, keep * block, drafts)


def _largest(values: Array, slopes: Array) -> tuple[float, float]:
    """The largest value, and its slope."""
    place = values.argmax()
    return float(values.flat[place]), float(slopes.flat[place])


@lru_cache(maxsize=64)
def _pass_seconds(costs: CostModel, sharers: int, width: int) -> tuple[Array, Array]:
    """Per sequence, [N, J + 1]: the seconds of passes without context, and those that each cached token adds."""
    counts = [(sharers * (1 + nodes), sharers * own) for nodes in NODES for own in range(MAX_BLOCKS + 1)]
    without, with_one = (
        np.array([costs.ragged(sharers, rows, own, width, context) / sharers for rows, own in counts])
        for context in (0.0, 1.0)
    )
    shape = len(NODES), MAX_BLOCKS + 1
    return without.reshape(shape), (with_one - without).reshape(shape)
