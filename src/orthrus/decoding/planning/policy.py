"""The value of drafts: decoding as a semi-Markov decision process, solved for the most tokens per second.

- A decision is taken before every pass.
- State: the drafts at hand. In state 0 there are none. In state 1 + 2 s they are rows s, s + 1, ... of a block that
  predicted the tokens before them (it agrees); in state 2 + 2 s, of a block that did not (it differs).
- Action: the number of blocks beside the AR rows, which verify all drafts at hand; or a diffusion pass, which verifies
  nothing and makes new drafts (state 1).
- Reward: the expected tokens of the pass, 1 + accepted drafts; 0 for a diffusion pass.
- Duration: the seconds of the pass, by the cost model.
- Transition: the number of accepted drafts determines which block is used, and the row from which its drafts start.

Under a policy with rate g (tokens per second), rewards r, durations t and transitions P, the relative values v of the
states, in tokens, satisfy v = r - g t + P v, with v = 0 in state 0. Policy iteration finds the policy with the highest
g (Howard, Dynamic Probabilistic Systems, vol. 2, 1971, chapter 15).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.planning.cost_model import Array, CostModel

RESTART = 0.01
"""The probability, per pass, that the sequence ends and another one starts without drafts. With it, state 0 is
reachable under every policy."""


@dataclass(frozen=True)
class Policy:
    """The best policy for blocks of `width` rows: its rate in tokens per second, and the values of drafts in tokens.

    block_values: [usable + 1], the value of a block by the row from which its drafts start; the last entry is for no
    drafts. refresh_value: the value of the drafts of a diffusion pass.
    """

    rate: float
    width: int
    block_values: Array
    refresh_value: float

    def next_values(self, survival: Array) -> Array:
        """[m + 2]: the expected value of the next drafts with 0, 1, ... blocks beside m drafts.

        survival: [m], the probabilities that at least 1, 2, ... of the drafts are accepted.
        """
        reached = np.concatenate([[1.0], survival, [0.0]])
        values = self.block_values[_all_starts(len(survival), len(self.block_values) - 1)]
        return np.asarray(values @ (reached[:-1] - reached[1:]))


class States:
    """The decision process for blocks of one width.

    held: [states], the number of drafts at hand in each state.

    Args:
        acceptance: [2, K], the probability that a row's draft is accepted if all drafts before it are, in a block that
            agrees and in one that differs.
        width: rows of a block.
        costs: the cost model.
        sharers: the number of sequences that share the cost of a pass.
        context: cached tokens per sequence.
    """

    def __init__(self, acceptance: Array, width: int, costs: CostModel, sharers: int, context: float) -> None:
        self.width, self._usable = width, min(width, acceptance.shape[1])
        usable, states = self._usable, 1 + 2 * self._usable
        from_row = np.arange(usable)
        padded = np.concatenate([acceptance[:, :usable], np.zeros((2, usable))], axis=1)
        accepted_next = np.zeros((states, usable))  # row 0 is the state without drafts
        accepted_next[1:] = padded[:, from_row[:, None] + from_row].swapaxes(0, 1).reshape(-1, usable)
        self.held = np.concatenate([[0], np.repeat(usable - from_row, 2)])
        survival = accepted_next.cumprod(axis=1)
        reached = np.concatenate([np.ones((states, 1)), survival, np.zeros((states, 1))], axis=1)
        agrees = np.concatenate([[1.0], acceptance[0, : usable - 1].cumprod()])
        self._next_state = np.zeros((usable + 1, states))  # distribution of the next state, by first row
        self._next_state[from_row, 1 + 2 * from_row], self._next_state[from_row, 2 + 2 * from_row] = agrees, 1 - agrees
        self._next_state[usable, 0] = 1.0
        accepted, refresh = reached[:, :-1] - reached[:, 1:], np.tile(np.eye(states)[1], (1, states, 1))
        self._transitions = (1 - RESTART) * np.concatenate(
            [accepted @ self._next_state[_all_starts(usable, usable)], refresh]
        )
        self._transitions[:, :, 0] += RESTART
        self._rewards = np.tile(1 + survival.sum(axis=1), (usable + 3, 1))
        self._rewards[-1] = 0.0
        self._rewards[-1, 1:3] = -1e3  # forbids two diffusion passes in a row
        durations = costs.grid(sharers, usable + 1, usable + 2, width, context)[:, self.held] / sharers
        drafting = costs.diffuse(sharers, width, context) / sharers
        self._durations = np.concatenate([durations, np.full((1, states), drafting)])

    def best(self) -> Policy:
        """The policy with the highest rate, by policy iteration."""
        states = np.arange(self._transitions.shape[1])
        chosen = np.zeros_like(states)
        while True:
            rate, values = self.evaluate(chosen)
            improved = self._rewards - rate * self._durations + self._transitions @ values
            better = improved.max(axis=0) > improved[chosen, states] + 1e-9
            if not better.any():
                return Policy(rate, self.width, self._next_state @ values, float(values[1]))
            chosen = np.where(better, improved.argmax(axis=0), chosen)

    def evaluate(self, chosen: NDArray[np.int64]) -> tuple[float, Array]:
        """The rate of a policy in tokens per second, and the relative values of the states, in tokens; state 0 has 0.

        chosen: [states], the action in each state: the number of blocks, or usable + 2 for a diffusion pass.
        """
        states = np.arange(len(chosen))
        system = np.eye(len(states)) - self._transitions[chosen, states]
        system[:, 0] = self._durations[chosen, states]
        solution = np.linalg.solve(system, self._rewards[chosen, states])
        return float(solution[0]), np.concatenate([[0.0], solution[1:]])


@cache
def _all_starts(drafts: int, usable: int) -> NDArray[np.int64]:
    """[drafts + 2, drafts + 1]: the row of the block from which the next drafts start, by the number of blocks and by
    how many of `drafts` were accepted. It is `usable` if there are no next drafts."""
    blocks, accepted = np.arange(drafts + 2)[:, None], np.arange(drafts + 1)
    rows = np.minimum(np.maximum(accepted - (blocks - 1), 0) + 1, usable)
    return np.where(blocks == 0, usable, rows)
