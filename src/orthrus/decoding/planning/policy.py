"""What drafts at hand are worth: decoding as a chain of passes, solved for the most tokens per second.

The state before a pass is the drafts at hand: none, or those from row s of a block on, which foresaw the bonus or did
not. An action is a number of blocks beside the AR rows, or a diffusion pass. Each gives tokens, takes time by the cost
table, and leads to other states. Solved by policy iteration for semi-Markov decision processes (Howard, Dynamic
Probabilistic Systems, vol. 2, 1971, chapter 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.planning.cost_model import Array, CostModel

RESTART = 0.01
"""The chance, per pass, that a sequence ends and another begins without drafts."""


@dataclass(frozen=True)
class Policy:
    """Tokens per second in the long run, blocks of `width` rows, and what drafts are worth in tokens.

    after: [usable + 1], by the row from which a block's drafts start, the last entry for none; fresh: drafts of a
    diffusion pass from the anchor.
    """

    rate: float
    width: int
    after: Array
    fresh: float

    def left(self, survival: Array) -> Array:
        """[m + 2]: the expected worth of what 0, 1, ... blocks leave, by the chances [m] of 1, 2, ... hits in a row."""
        ends = np.concatenate([[1.0], survival, [0.0]])
        lands = self.after[_all_starts(len(survival), len(self.after) - 1)]
        return np.asarray(lands @ (ends[:-1] - ends[1:]))


class States:
    """The problem for blocks of one width.

    Args:
        chances: [2, K], of each row's draft, its predecessors being right, where the block foresaw the bonus or not.
        width: rows of a block.
        costs: what passes cost.
        share: sequences over which the price of a pass is shared out.
        context: cached tokens.
    """

    def __init__(self, chances: Array, width: int, costs: CostModel, share: int, context: float) -> None:
        self.width, self._usable = width, min(width, chances.shape[1])
        usable, states = self._usable, 1 + 2 * self._usable
        from_row = np.arange(usable)
        ahead = np.concatenate([chances[:, :usable], np.zeros((2, usable))], axis=1)
        hits = np.zeros((states, usable))  # after the state of nothing, those of each first row, foreseen or not
        hits[1:] = ahead[:, from_row[:, None] + from_row].swapaxes(0, 1).reshape(-1, usable)
        self.held = np.concatenate([[0], np.repeat(usable - from_row, 2)])
        survival = hits.cumprod(axis=1)
        chain = np.concatenate([np.ones((states, 1)), survival, np.zeros((states, 1))], axis=1)
        foresaw = np.concatenate([[1.0], chances[0, : usable - 1].cumprod()])
        self._lands = np.zeros((usable + 1, states))  # from a block whose drafts start at this row
        self._lands[from_row, 1 + 2 * from_row], self._lands[from_row, 2 + 2 * from_row] = foresaw, 1 - foresaw
        self._lands[usable, 0] = 1.0
        ends, anew = chain[:, :-1] - chain[:, 1:], np.tile(np.eye(states)[1], (1, states, 1))
        self._moves = (1 - RESTART) * np.concatenate([ends @ self._lands[_all_starts(usable, usable)], anew])
        self._moves[:, :, 0] += RESTART
        self._gains = np.tile(1 + survival.sum(axis=1), (usable + 3, 1))
        self._gains[-1] = 0.0
        self._gains[-1, 1:3] = -1e3  # a diffusion pass after a diffusion pass is of no use
        times = costs.grid(share, usable + 1, usable + 2, width, context)[:, self.held] / share
        drafting = costs.diffuse(share, width, context) / share
        self._times = np.concatenate([times, np.full((1, states), drafting)])

    def best(self) -> Policy:
        """The best policy there is."""
        every = np.arange(self._moves.shape[1])
        chosen = np.zeros_like(every)
        while True:
            rate, values = self.evaluate(chosen)
            worth = self._gains - rate * self._times + self._moves @ values
            better = worth.max(axis=0) > worth[chosen, every] + 1e-9
            if not better.any():
                return Policy(rate, self.width, self._lands @ values, float(values[1]))
            chosen = np.where(better, worth.argmax(axis=0), chosen)

    def evaluate(self, chosen: NDArray[np.int64]) -> tuple[float, Array]:
        """Rate of gain of a policy, and the relative values of the states under it, that of state 0 being 0.

        chosen: by state, how many blocks; usable + 2 is a diffusion pass.
        """
        every = np.arange(len(chosen))
        system = np.eye(len(every)) - self._moves[chosen, every]
        system[:, 0] = self._times[chosen, every]
        solution = np.linalg.solve(system, self._gains[chosen, every])
        return float(solution[0]), np.concatenate([[0.0], solution[1:]])


@cache
def _all_starts(most: int, usable: int) -> NDArray[np.int64]:
    """[most + 2, most + 1]: the row from which the next drafts start with 0, 1, ... blocks, by how many of `most`
    drafts were accepted; `usable`: none do."""
    blocks, accepted = np.arange(most + 2)[:, None], np.arange(most + 1)
    rows = np.minimum(np.maximum(accepted - (blocks - 1), 0) + 1, usable)
    return np.where(blocks == 0, usable, rows)
