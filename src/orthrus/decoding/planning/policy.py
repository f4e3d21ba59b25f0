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

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.planning.cost_model import CostModel

Array = NDArray[np.float64]
NODES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""The numbers of nodes for which yields are kept."""
MAX_BLOCKS = 4
"""The most blocks of a sequence beside the AR rows of a pass."""
RESTART = 0.01
"""The probability, per pass, that the sequence ends."""
STEPS = 24
"""Halvings of the interval in which the best rate is looked for."""


@dataclass(frozen=True)
class Yield:
    """What the drafts of a block hold: by the number of verified nodes, the expected number of accepted drafts [N], and
    the probability [N, J + 1] that the accepted path ends at one of the J likeliest ends."""

    accepted: Array
    covered: Array

    @staticmethod
    def of(parents: Sequence[int], probabilities: Sequence[float], nodes: Sequence[int] | None = None) -> Yield:
        """The yield of a tree whose nodes have these path probabilities, or of some of its `nodes`, a tree too."""
        chosen = range(len(parents)) if nodes is None else nodes
        ends, total = [1.0, *[0.0] * len(parents)], 0.0
        accepted: list[float] = []
        covered: list[list[float]] = []
        for count in range(max(NODES) + 1):
            if count in NODES:
                accepted.append(total)
                covered.append(_covered(ends))
            if count < len(chosen):
                node = chosen[count]
                total += probabilities[node]
                ends[parents[node] + 1] -= probabilities[node]
                ends[node + 1] = probabilities[node]
        return Yield(np.array(accepted), np.array(covered))

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

    rate: float
    width: int
    block_value: float
    refresh_value: float


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
    """The best policy for blocks of one width, by bisection of the rate.

    fresh, beside: the yields of a diffusion pass and of a block beside AR rows. sharers: the sequences that share the
    cost of a pass. context: cached tokens per sequence. blocks: the most blocks beside AR rows. refreshes: whether
    there are diffusion passes.
    """
    counts = [(sharers * (1 + nodes), sharers * own) for nodes in NODES for own in range(blocks + 1)]
    seconds = [costs.ragged(sharers, rows, own, width, context) / sharers for rows, own in counts]
    seconds_NJ = np.array(seconds).reshape(len(NODES), blocks + 1)
    drafting = costs.diffuse(sharers, width, context) / sharers
    plain, keep = float(seconds_NJ[0, 0]), 1 - RESTART
    covered = keep * beside.covered[:, : blocks + 1]

    def values(rate: float) -> tuple[float, float]:
        gains_NJ = 1 - rate * seconds_NJ
        block = max(0.0, float(((gains_NJ + beside.accepted[:, None]) / (1 - covered)).max()))
        drafts = gains_NJ + fresh.accepted[:, None] + keep * fresh.covered[:, : blocks + 1] * block
        return keep * block, float(drafts.max())

    low, high = 1 / plain, (2 + float(max(fresh.accepted.max(), beside.accepted.max()))) / plain
    for _ in range(STEPS):
        rate = (low + high) / 2
        block, drafts = values(rate)
        first_block = 1 - rate * float(seconds_NJ[0, 1]) + block if blocks else 0.0
        pays = first_block > 0 or (refreshes and drafts > rate * drafting)
        low, high = (rate, high) if pays else (low, rate)
    return Policy(low, width, *values(low))


def _covered(ends: Sequence[float]) -> list[float]:
    """[J + 1]: the sums of the largest of some probabilities."""
    sums, largest = [0.0], sorted(ends, reverse=True)[:MAX_BLOCKS]
    for end in [*largest, *[0.0] * (MAX_BLOCKS - len(largest))]:
        sums.append(min(1.0, sums[-1] + max(0.0, end)))
    return sums
