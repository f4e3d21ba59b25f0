"""Running estimates of draft acceptance, by row of the block and by the confidence of the draft.

Every estimate is a conditional probability: that a draft is accepted, given that all drafts before it in its block are.
The probability that at least i drafts are accepted is therefore the product of the first i estimates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orthrus.decoding.drafts import Draft

KINDS = ("agrees", "differs", "lookup")
"""Kinds of drafts, see `Draft`; acceptance is estimated for each."""
CONFIDENCE_BINS = 12
"""Bins of the top-1 probability: tenths, with the highest tenth in three bins."""
BIN_EDGES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 0.99])
"""Borders of the bins."""
DECAY = 0.97
"""The factor by which each verdict reduces the weight of all earlier ones."""
PRIOR_WEIGHT = 4.0
"""The weight of the prior, in observations."""


class AcceptanceHistory:
    """Decayed counts of accepted drafts ("hits") and of verified drafts ("tries") of one sequence.

    A try is a draft before which all drafts of its block were accepted. The prior is the estimates of the sequence
    `before`, or defaults if there is none. `verdicts` counts those on blocks; `observed`: whether it differs from its
    prior.
    """

    def __init__(self, rows: int, before: AcceptanceHistory | None = None) -> None:
        self._prior_by_row = before.by_row() if before else _default_by_row(rows)
        self._prior_by_confidence = before.by_confidence() if before else _default_by_confidence()
        self._rows = np.zeros((2, 2, rows))
        self._bins = np.zeros((2, len(KINDS), CONFIDENCE_BINS))
        self.verdicts, self.observed = 0, False

    def by_row(self) -> NDArray[np.float64]:
        """[2, K]: the acceptance probability by row of the block, for blocks that agree and blocks that differ."""
        hits, tries = self._rows
        return np.asarray((hits + PRIOR_WEIGHT * self._prior_by_row) / (tries + PRIOR_WEIGHT))

    def by_confidence(self) -> NDArray[np.float64]:
        """[3, CONFIDENCE_BINS]: the acceptance probability by kind of draft and by its confidence."""
        hits, tries = self._bins
        return np.asarray((hits + PRIOR_WEIGHT * self._prior_by_confidence) / (tries + PRIOR_WEIGHT))

    def acceptance(self, draft: Draft) -> NDArray[np.float64]:
        """[m]: the probability of each draft to be accepted if all drafts before it are."""
        if not draft.tokens:
            return np.empty(0)
        kind = KINDS.index(draft.kind)
        if len(draft.confidence) < len(draft.tokens):
            return self.by_row()[min(kind, 1), draft.start : draft.start + len(draft.tokens)]
        return self.by_confidence()[kind, np.searchsorted(BIN_EDGES, draft.confidence)]

    def observe(self, draft: Draft, offered: int, accepted: int) -> None:
        """Count the verdict on the first `offered` drafts; the weight of older verdicts decays."""
        self.verdicts, self.observed = self.verdicts + (draft.kind != "lookup"), True
        self._rows *= DECAY
        self._bins *= DECAY
        kind = KINDS.index(draft.kind)
        tried = range(min(offered, accepted + 1))
        bins = np.searchsorted(BIN_EDGES, draft.confidence) if draft.confidence else None
        for offset in tried:
            if draft.kind != "lookup" and draft.start + offset < self._rows.shape[2]:
                self._count(self._rows, (kind, draft.start + offset), offset < accepted)
            if bins is not None:
                self._count(self._bins, (kind, int(bins[offset])), offset < accepted)

    def observe_agreement(self, *, agreed: bool) -> None:
        """Count whether row 0 of a block predicted the token of the AR view."""
        self.observed = True
        self._count(self._rows, (0, 0), agreed)

    @staticmethod
    def _count(table: NDArray[np.float64], where: tuple[int, int], hit: bool) -> None:
        table[(0, *where)] += hit
        table[(1, *where)] += 1


def _default_by_row(rows: int) -> NDArray[np.float64]:
    """The prior of the first sequence: the first row of a block is right most often."""
    agrees = np.full(rows, 0.7)
    agrees[0] = 0.88
    return np.stack([agrees, np.full(rows, 0.35)])


def _default_by_confidence() -> NDArray[np.float64]:
    """The prior of the first sequence: linear in the confidence, by kind of draft."""
    middles = np.array([*(np.arange(9) + 0.5) / 10, 0.93, 0.975, 0.995])
    return np.stack([0.1 + 0.9 * middles, 0.6 * middles, 0.3 + 0.6 * middles])
