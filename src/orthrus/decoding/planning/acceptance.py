"""How often drafts were right: running estimates by row of a block, and by how sure the draft was."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.drafts import Draft

KINDS = ("agrees", "differs", "lookup")
LEVELS = 12
"""Classes of sureness: tenths of the probability, the top tenth in three."""
EDGES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99])
KEPT = 0.97
"""What a cycle leaves of the weight of those before it."""
TRUST = 4.0
"""Observations that the expectation before any counts for."""


class History:
    """Hits and tries of one sequence. A try is a draft whose predecessors in its block were all accepted.

    Starts from the estimates of `before`, worth a few tries each, where there is one.
    """

    def __init__(self, rows: int, before: History | None = None) -> None:
        self._rows_before = before.by_row() if before else _expected_by_row(rows)
        self._levels_before = before.by_level() if before else _expected_by_level()
        self._rows = np.zeros((2, 2, rows))
        self._levels = np.zeros((2, len(KINDS), LEVELS))
        self.verdicts = 0

    def by_row(self) -> NDArray[np.float64]:
        """[2, K]: the chance of each row's draft, its predecessors being right, by whether row 0 met the bonus."""
        hits, tries = self._rows
        return np.asarray((hits + TRUST * self._rows_before) / (tries + TRUST))

    def by_level(self) -> NDArray[np.float64]:
        """[3, LEVELS]: the same chance by kind of draft and by how sure it was."""
        hits, tries = self._levels
        return np.asarray((hits + TRUST * self._levels_before) / (tries + TRUST))

    def chances(self, draft: Draft) -> NDArray[np.float64]:
        """[m]: the chance of each draft, its predecessors being right."""
        if not draft.tokens:
            return np.empty(0)
        kind = KINDS.index(draft.kind)
        if len(draft.confidence) < len(draft.tokens):
            return self.by_row()[min(kind, 1), draft.start : draft.start + len(draft.tokens)]
        return self.by_level()[kind, np.searchsorted(EDGES, draft.confidence)]

    def observe(self, draft: Draft, offered: int, accepted: int) -> None:
        """Enter the verdict on the first `offered` drafts; older verdicts fade."""
        self.verdicts += 1
        self._rows *= KEPT
        self._levels *= KEPT
        kind = KINDS.index(draft.kind)
        tried = range(min(offered, accepted + 1))
        levels = np.searchsorted(EDGES, draft.confidence) if draft.confidence else None
        for offset in tried:
            if draft.kind != "lookup" and draft.start + offset < self._rows.shape[2]:
                self._enter(self._rows, (kind, draft.start + offset), offset < accepted)
            if levels is not None:
                self._enter(self._levels, (kind, int(levels[offset])), offset < accepted)

    def observe_agreement(self, *, met: bool) -> None:
        """Enter whether row 0 of a block met the token that the AR view gave."""
        self._enter(self._rows, (0, 0), met)

    @staticmethod
    def _enter(table: NDArray[np.float64], where: tuple[int, int], hit: bool) -> None:
        table[(0, *where)] += hit
        table[(1, *where)] += 1


def _expected_by_row(rows: int) -> NDArray[np.float64]:
    agrees = np.full(rows, 0.7)
    agrees[0] = 0.88
    return np.stack([agrees, np.full(rows, 0.35)])


def _expected_by_level() -> NDArray[np.float64]:
    middles = np.array([*(np.arange(9) + 0.5) / 10, 0.93, 0.975, 0.995])
    return np.stack([0.1 + 0.9 * middles, 0.6 * middles, 0.3 + 0.6 * middles])
