"""Rule `exact`: the AR view's own token is fixed first; drafts are accepted while they equal it.

The output is that of plain AR decoding, token for token, whatever the drafts.
"""

from __future__ import annotations

from torch import Tensor

from orthrus.decoding.sampling import Sampler
from orthrus.decoding.sequence import Verdict


def verify(sampler: Sampler, logits_RV: Tensor, drafts: list[int], position: int) -> Verdict:
    """Judge `drafts` by the logits [m + 1, V] after the anchor and each of them; `position` is the first draft's."""
    tokens: list[int] = []
    for target, draft in zip(sampler.targets(logits_RV, position), [*drafts, None], strict=False):
        tokens.append(target)
        if target != draft:
            break
    return Verdict(tokens, accepted=len(tokens) - 1)
