"""Running estimates of draft acceptance, and of what the drafts of a block are worth.

A draft carries the calibrated probability that it is accepted if its parent is. Verdicts correct it, by kind of draft
and by confidence: the estimate is the confidence times the ratio of accepted drafts to expected ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from orthrus.decoding.planning.policy import Yield
from orthrus.drafters.tree import DraftTree, Kind

DEFAULT_RATIOS: dict[Kind, float] = {"agrees": 1.0, "differs": 0.6, "lookup": 1.0}
"""The ratio of accepted to expected drafts in the first sequence, by kind of draft (see `DraftTree`)."""
BIN_EDGES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Borders of the bins of confidence."""
DECAY = 0.97
"""The factor by which each verdict reduces the weight of all earlier ones."""
PRIOR_WEIGHT = 3.0
"""The weight of the prior, in expected drafts and in blocks."""
MAX_PROBABILITY = 0.995
SOURCES = ("pass", "beside")
"""Where drafts come from: a diffusion pass, or a block beside AR rows, whose first row predicts the bonus token."""


class AcceptanceHistory:
    """The ratios of accepted to expected drafts of one sequence, and the yields of its blocks.

    Only drafts whose parent was accepted count. The prior is the defaults or, after a sequence `before`, the means of
    its estimates and the defaults: drafts that were seldom accepted are tried again. `verdicts`: passes that had the
    drafts of a block; `observed`: whether it differs from its prior.
    """

    def __init__(self, widths: tuple[int, ...], rows: int, before: AcceptanceHistory | None = None) -> None:
        self._rows = rows
        self._ratios: dict[tuple[Kind, int], _Ratio] = {
            (kind, place): _Ratio((before._ratios[kind, place].value + default) / 2 if before else default)
            for kind, default in DEFAULT_RATIOS.items()
            for place in range(len(BIN_EDGES) + 1)
        }
        self._widths = widths
        self._yields = {
            source: _Mean(before.yields_of(source) if before else _defaults(source, widths, rows)) for source in SOURCES
        }
        self._blocks: list[tuple[str, int, list[int], list[float]]] = []
        self.verdicts, self.observed = 0, False

    def yields_of(self, source: str) -> Yield:
        """What blocks from this source yield on average, by width."""
        for block in self._blocks:
            self._add_yields(*block)
        self._blocks.clear()
        return self._yields[source].mean

    def probabilities(self, draft: DraftTree) -> list[float]:
        """[m]: the probability of each node to be accepted. Those of siblings exclude one another."""
        ratios = {
            kind: [self._ratios[kind, place].value for place in range(len(BIN_EDGES) + 1)] for kind in set(draft.kinds)
        }
        given_parent = [
            ratios[kind][bisect_left(BIN_EDGES, confidence)] * confidence
            for kind, confidence in zip(draft.kinds, draft.confidence, strict=True)
        ]
        totals = [0.0] * (len(given_parent) + 1)
        for own, parent in zip(given_parent, draft.parents, strict=True):
            totals[parent + 1] += own
        found: list[float] = []
        for own, parent in zip(given_parent, draft.parents, strict=True):
            share = min(1.0, MAX_PROBABILITY / totals[parent + 1])
            found.append(own * share * (found[parent] if parent >= 0 else 1.0))
        return found

    def observe(self, draft: DraftTree, path: list[int], *, stopped: bool) -> None:
        """Count the verdict on a verified draft, of which the nodes of `path` were accepted. stopped: the sequence
        ended with the last of them, so nothing is known about its children."""
        self.observed = True
        for ratio in self._ratios.values():
            ratio.hits, ratio.expected = DECAY * ratio.hits, DECAY * ratio.expected
        tried = {-1, *path} if not stopped else {-1, *path[:-1]} if path else set()
        for node, parent in enumerate(draft.parents):
            if parent in tried:
                ratio = self._ratio(draft.kinds[node], draft.confidence[node])
                ratio.hits += node in path
                ratio.expected += draft.confidence[node]

    def observe_block(self, source: str, width: int, draft: DraftTree, reached: list[float]) -> None:
        """Record what a block yielded: the drafts at hand, with their probabilities to be accepted.

        The yields are computed when they are asked for, those of many blocks one after another, since each pass of the
        model empties the processor's caches.
        """
        self._blocks.append((source, width, draft.parents, reached))

    def _add_yields(self, source: str, width: int, parents: list[int], reached: list[float]) -> None:
        """Add the yields of a block, as if it had been narrower too, and as its last drafts suggest for wider ones."""
        depths: list[int] = []
        for parent in parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        deepest = max(depths, default=0)
        limits = [_depth(source, other, self._rows) for other in self._widths]
        limits = [min(own, deepest) if w <= width else own for own, w in zip(limits, self._widths, strict=True)]
        self._yields[source].add(_yields_to(limits, parents, reached, depths))

    def _ratio(self, kind: Kind, confidence: float) -> _Ratio:
        return self._ratios[kind, bisect_left(BIN_EDGES, confidence)]


class _Ratio:
    """Decayed counts of accepted drafts ("hits") and the sum of their confidences ("expected")."""

    def __init__(self, prior: float) -> None:
        self.prior, self.hits, self.expected = prior, 0.0, 0.0

    @property
    def value(self) -> float:
        return (self.hits + PRIOR_WEIGHT * self.prior) / (self.expected + PRIOR_WEIGHT)


class _Mean:
    """The decayed mean of yields."""

    def __init__(self, prior: Yield) -> None:
        self.mean, self._weight = prior, PRIOR_WEIGHT

    def add(self, one: Yield) -> None:
        self._weight = DECAY * self._weight + 1
        self.mean = self.mean.towards(one, 1 / self._weight)


def _depth(source: str, width: int, rows: int) -> int:
    """The most drafts of a path from a block of this width, of which `rows` are trained."""
    return min(width, rows) - (source == "beside")


def _yields_to(limits: Sequence[int], parents: Sequence[int], reached: Sequence[float], depths: Sequence[int]) -> Yield:
    """The yields of a tree down to some depths. Where it is less deep, the likeliest of its deepest nodes is followed
    by a chain whose path probabilities fall as those of the last two depths do."""
    deepest = max(depths, default=0)
    if 0 < deepest < max(limits):
        last, before = (
            sum([path for path, own in zip(reached, depths, strict=True) if own == level])
            for level in (deepest, deepest - 1)
        )
        ratio = min(last / before if deepest > 1 else last, MAX_PROBABILITY)
        node = max([(path, node) for node, path in enumerate(reached) if depths[node] == deepest])[1]
        more, first = max(limits) - deepest, len(parents)
        parents = [*parents, node, *range(first, first + more - 1)]
        reached = [*reached, *(reached[node] * ratio**n for n in range(1, more + 1))]
        depths = [*depths, *range(deepest + 1, deepest + more + 1)]
        order = sorted(range(len(reached)), key=[-path for path in reached].__getitem__)
        place = {-1: -1} | {node: index for index, node in enumerate(order)}
        parents = [place[parents[node]] for node in order]
        reached, depths = [reached[node] for node in order], [depths[node] for node in order]
    return Yield.of(parents, reached, np.array(depths, int) <= np.array(limits)[:, None])


def _defaults(source: str, widths: Sequence[int], rows: int) -> Yield:
    """The yields by width that are assumed for the first sequence: those of chains whose drafts are often right."""
    first = 0.8 if source == "pass" else 0.6
    depths = [_depth(source, width, rows) for width in widths]
    nodes = range(max(depths))
    kept_WM = np.array(nodes) < np.array(depths)[:, None]
    return Yield.of(range(-1, len(nodes) - 1), [first * 0.7**node for node in nodes], kept_WM)
