"""Running estimates of draft acceptance, and of what the drafts of a block are worth.

A draft carries the calibrated probability that it is accepted if its parent is. Verdicts correct it, by kind of draft
and by confidence: the estimate is the confidence times the ratio of accepted drafts to expected ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.drafts import Draft
from orthrus.decoding.planning.policy import Yield

KINDS = ("agrees", "differs", "lookup")
"""Kinds of drafts, see `Draft`; acceptance is estimated for each."""
DEFAULT_RATIOS = (1.0, 0.6, 1.0)
"""The ratio of accepted to expected drafts in the first sequence, by kind."""
BIN_EDGES = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
"""Borders of the bins of confidence."""
DECAY = 0.97
"""The factor by which each verdict reduces the weight of all earlier ones."""
PRIOR_WEIGHT = 3.0
"""The weight of the prior, in expected drafts and in blocks."""
MAX_PROBABILITY = 0.995
SOURCES = ("pass", "beside")
"""Where drafts come from: a diffusion pass, or a block beside AR rows, whose first row predicts the bonus token."""


class AcceptanceHistory:
    """Decayed counts of accepted drafts ("hits") and the sum of their confidences ("expected") of one sequence, and
    the yields of its blocks.

    Only drafts whose parent was accepted count. The prior is the estimates of the sequence `before`, or defaults if
    there is none. `verdicts` counts those on blocks; `observed`: whether it differs from its prior.
    """

    def __init__(self, widths: tuple[int, ...], rows: int, before: AcceptanceHistory | None = None) -> None:
        self._rows = rows
        self._prior = before.ratios() if before else np.repeat(np.array(DEFAULT_RATIOS)[:, None], len(BIN_EDGES) + 1, 1)
        self._counts = np.zeros((2, *self._prior.shape))
        self._yields = {
            (source, width): _Mean(before.yield_of(source, width) if before else _default(source, width, rows))
            for source in SOURCES
            for width in widths
        }
        self.verdicts, self.observed = 0, False

    def ratios(self) -> NDArray[np.float64]:
        """[3, bins]: accepted drafts relative to expected ones, by kind and confidence."""
        hits, expected = self._counts
        return np.asarray((hits + PRIOR_WEIGHT * self._prior) / (expected + PRIOR_WEIGHT))

    def yield_of(self, source: str, width: int) -> Yield:
        """What a block of this width from this source yields on average."""
        return self._yields[source, width].mean

    def probabilities(self, draft: Draft) -> list[float]:
        """[m]: the probability of each node to be accepted. Those of siblings exclude one another."""
        if not draft.tokens:
            return []
        ratios = self.ratios()[
            [KINDS.index(kind) for kind in draft.kinds], np.searchsorted(BIN_EDGES, draft.confidence)
        ]
        given_parent = (ratios * draft.confidence).tolist()
        totals = [0.0] * (len(given_parent) + 1)
        for own, parent in zip(given_parent, draft.parents, strict=True):
            totals[parent + 1] += own
        found: list[float] = []
        for own, parent in zip(given_parent, draft.parents, strict=True):
            share = min(1.0, MAX_PROBABILITY / totals[parent + 1])
            found.append(own * share * (found[parent] if parent >= 0 else 1.0))
        return found

    def observe(self, draft: Draft, path: list[int], *, stopped: bool) -> None:
        """Count the verdict on a verified draft, of which the nodes of `path` were accepted. stopped: the sequence
        ended with the last of them, so nothing is known about its children."""
        self.observed = True
        self.verdicts += any(kind != "lookup" for kind in draft.kinds)
        self._counts *= DECAY
        tried = {-1, *path} if not stopped else {-1, *path[:-1]} if path else set()
        accepted = set(path)
        for node, parent in enumerate(draft.parents):
            if parent in tried:
                where = KINDS.index(draft.kinds[node]), int(np.searchsorted(BIN_EDGES, draft.confidence[node]))
                self._counts[(0, *where)] += node in accepted
                self._counts[(1, *where)] += draft.confidence[node]

    def observe_block(self, source: str, width: int, draft: Draft) -> None:
        """Record what a block yielded: the drafts at hand, as if it had been narrower too."""
        depths = [len(path) for path in draft.paths[1:]]
        reached = self.probabilities(draft)
        for (made_by, narrower), mean in self._yields.items():
            if made_by == source and narrower <= width:
                deepest = _depth(source, narrower, self._rows)
                nodes = [node for node, depth in enumerate(depths) if depth <= deepest]
                mean.add(Yield.of(draft.parents, reached, nodes))


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


def _default(source: str, width: int, rows: int) -> Yield:
    """The yield that is assumed for the first sequence: that of a chain whose drafts are often right."""
    depth, first = _depth(source, width, rows), 0.8 if source == "pass" else 0.6
    return Yield.of(list(range(-1, depth - 1)), [first * 0.7**node for node in range(depth)])
