"""What a pass computes for its sequences: whatever is worth its seconds, the most valuable first. Pure functions.

An end is a node at which the accepted path may end (-1 is the anchor), with its probability.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

End = tuple[float, int]


def count_offered(probabilities: list[list[float]], cost: Callable[[int], list[float]]) -> list[int]:
    """How many nodes of each tree are verified: the likeliest of all trees, as many as maximise the gain.

    probabilities: of the nodes of each tree, falling. cost: of passes with 0 to so many nodes, in tokens.
    """
    worth = [(-own, slot) for slot, tree in enumerate(probabilities) for own in tree]
    if len(probabilities) > 1:
        worth.sort()
    costs, offered = cost(len(worth)), [0] * len(probabilities)
    for _, slot in worth[: _best_count([-negative for negative, _ in worth], costs.__getitem__)]:
        offered[slot] += 1
    return offered


def count_causally(probabilities: list[float], row_value: Callable[[int], float]) -> int:
    """How many nodes of one tree are verified: all before the first that is not worth its row, so whether a node is
    verified depends on the nodes before it alone. row_value: the tokens that one more row costs in a pass of so many.
    """
    return next((n for n, own in enumerate(probabilities) if own <= row_value(1 + n)), len(probabilities))


def blocks_may_pay(values: list[float], cost: Callable[[int], float]) -> bool:
    """Whether blocks would pay if it were certain where the accepted paths end. values, cost: see `choose_roots`."""
    return sum([value for value in values if value > 0]) > cost(1) - cost(0)


def choose_roots(ends: list[list[End]], values: list[float], cost: Callable[[int], float]) -> list[list[End]]:
    """The ends of each sequence that get a block: the most valuable of all sequences, as many as maximise the gain.

    values: of a block of each sequence, in tokens. cost: of a pass with so many blocks, in tokens.
    """
    worth = sorted((-end * values[slot], slot, end, node) for slot, own in enumerate(ends) for end, node in own)
    roots: list[list[End]] = [[] for _ in ends]
    for _, slot, end, node in worth[: _best_count([-negative for negative, *_ in worth], cost)]:
        roots[slot].append((end, node))
    return roots


def choose_refreshed(gains: list[float], rate: float, cost: Callable[[int], float], allowance: float) -> list[bool]:
    """Which sequences take part in a diffusion pass first: those with the largest gains, as many as maximise the total
    gain within the budget. gains: in tokens."""
    order = sorted(range(len(gains)), key=lambda slot: -gains[slot])

    def tokens(count: int) -> float:
        return (rate * cost(count) if cost(count) <= allowance else inf) if count else 0.0

    chosen = order[: _best_count([gains[slot] for slot in order], tokens)]
    return [slot in chosen for slot in range(len(gains))]


def _best_count(values: list[float], cost: Callable[[int], float]) -> int:
    """How many of these values to take, in order, so that their sum less the cost of so many is largest."""
    best, most, total = 0, -cost(0), 0.0
    for count, value in enumerate(values, 1):
        total += value
        gain = total - cost(count)
        if gain > most:
            best, most = count, gain
    return best
