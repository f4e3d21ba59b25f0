"""Rule `exact`: the AR view's own token is fixed first; drafts are accepted while they equal it.

The output equals plain AR decoding token for token, whatever the drafts are. Draft and target of a position use the
same noise, so that they agree more often when sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.rules import Check, Proposal
from orthrus.decoding.sampling import RowRequest, sample


def propose(proposals: Sequence[Proposal]) -> list[Draft]:
    """See `Rule`."""
    rows = [RowRequest(p.sampler, p.logits_RV, p.position, drafting=True) for p in proposals]
    return [Draft(tokens) for tokens in sample(rows)]


def verify(checks: Sequence[Check]) -> list[Verdict]:
    """See `Rule`. Each row assumes that all drafts before it are accepted; if one is not, the row is discarded."""
    targets = sample([RowRequest(c.sampler, c.logits_RV, c.position, c.draft.tokens) for c in checks])
    verdicts = [_accept(check.draft.tokens, tokens) for check, tokens in zip(checks, targets, strict=True)]
    for check, verdict in zip(checks, verdicts, strict=True):
        check.sampler.advance(verdict.tokens)
    return verdicts


def _accept(drafted: list[int], targets: list[int]) -> Verdict:
    """Accept the drafts before the first mismatch; the target after them is the bonus token."""
    unequal = (n for n, (draft, target) in enumerate(zip(drafted, targets, strict=False)) if draft != target)
    accepted = next(unequal, len(drafted))
    return Verdict(targets[: accepted + 1], accepted)
