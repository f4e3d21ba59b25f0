"""What a pass computes for its sequences: whatever is worth its seconds, the most valuable first. Pure functions.

An end is a node at which the accepted path may end (-1 is the anchor), with its probability.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

End = tuple[float, int]


def count_offered(probabilities: list[list[float]], row_value: Callable[[int], float]) -> list[int]:
    """How many nodes of each tree are verified: the likeliest of all trees, while one is worth its row.

    A tree is cut at its first node that is not worth its row, so whether a node is verified depends on the nodes before
    it alone.

    probabilities: of the nodes of each tree. row_value: the tokens that one more row costs in a pass of so many rows.
    """
    offered = [0] * len(probabilities)
    waiting = [(-own[0], slot) for slot, own in enumerate(probabilities) if own]
    heapify(waiting)
    rows = len(probabilities)
    while waiting:
        negative, slot = heappop(waiting)
        if -negative <= row_value(rows):
            continue
        offered[slot], rows = offered[slot] + 1, rows + 1
        if offered[slot] < len(probabilities[slot]):
            heappush(waiting, (-probabilities[slot][offered[slot]], slot))
    return offered


def choose_roots(ends: list[list[End]], values: list[float], cost: Callable[[int], float]) -> list[list[End]]:
    """The ends of each sequence that get a block: the most valuable of all sequences, as many as maximise the gain.

    values: of a block of each sequence, in tokens. cost: of a pass with so many blocks, in tokens.
    """
    worth = sorted((-end * values[slot], slot, end, node) for slot, own in enumerate(ends) for end, node in own)
    total, best, chosen = 0.0, -cost(0), 0
    for count, (negative, *_) in enumerate(worth, start=1):
        total -= negative
        if total - cost(count) > best:
            best, chosen = total - cost(count), count
    roots: list[list[End]] = [[] for _ in ends]
    for _, slot, end, node in worth[:chosen]:
        roots[slot].append((end, node))
    return roots


def choose_refreshed(gains: list[float], rate: float, cost: Callable[[int], float], allowance: float) -> list[bool]:
    """Which sequences take part in a diffusion pass first: those with the largest gains, as many as maximise the total
    gain within the budget. gains: in tokens."""
    order = sorted(range(len(gains)), key=lambda slot: -gains[slot])
    total, best, chosen = 0.0, 0.0, 0
    for count, slot in enumerate(order, start=1):
        total += gains[slot]
        if total - rate * cost(count) > best and cost(count) <= allowance:
            best, chosen = total - rate * cost(count), count
    return [slot in order[:chosen] for slot in range(len(gains))]
