"""Rule `exact`: the AR view's own token is fixed first; drafts are accepted while they equal it.

The output is that of plain AR decoding, token for token, whatever the drafts. Draft and target of a position meet the
same noise, which makes them agree more often when sampling.
"""

from __future__ import annotations

from torch import Tensor

from orthrus.decoding.sampling import Sampler
from orthrus.decoding.sequence import Draft, Verdict


def propose(sampler: Sampler, logits_RV: Tensor, position: int, block: int) -> Draft:
    """See `Rule`."""
    del block
    return Draft(sampler.propose(logits_RV, position))


def verify(sampler: Sampler, logits_RV: Tensor, draft: Draft, position: int) -> Verdict:
    """See `Rule`."""
    tokens: list[int] = []
    for target, drafted in zip(sampler.targets(logits_RV, position), [*draft.tokens, None], strict=False):
        tokens.append(target)
        if target != drafted:
            break
    return Verdict(tokens, accepted=len(tokens) - 1)
