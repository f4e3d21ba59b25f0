"""Rule `rejection`: accept a draft with probability min(1, p / q), else resample from max(p - q, 0).

The output is distributed as that of plain AR decoding (Leviathan et al., arXiv 2211.17192, appendix A.1), though not
token for token, and more drafts are accepted than by any rule that fixes the target first. Every random value has a
purpose of its own; a draft's is keyed by its block too, since one position may be drafted from many.
Letters: p target, q draft, u uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.decoding.noise import Purpose
from orthrus.decoding.rules import exact
from orthrus.decoding.sampling import Sampler
from orthrus.decoding.sequence import Draft, Verdict


def propose(sampler: Sampler, logits_RV: Tensor, position: int, block: int) -> Draft:
    """See `Rule`. Each draft is drawn from its row's q, which the draft keeps.

    Rows from the first on whose q is no distribution (the view gave NaN) draft nothing.
    """
    if sampler.params.greedy:
        return exact.propose(sampler, logits_RV, position, block)
    q_RV = torch.stack([sampler.probabilities(logits_V) for logits_V in logits_RV])
    q_RV = q_RV[: int(q_RV.isfinite().all(dim=-1).long().cumprod(0).sum())]
    tokens = [_draw(q_V, sampler.noise.uniform(position + row, Purpose.DRAFT, block)) for row, q_V in enumerate(q_RV)]
    return Draft(tokens, q_RV)


def verify(sampler: Sampler, logits_RV: Tensor, draft: Draft, position: int) -> Verdict:
    """See `Rule`. A draft without q is one of a point mass: it was not drawn at all."""
    if sampler.params.greedy:
        return exact.verify(sampler, logits_RV, draft, position)
    tokens: list[int] = []
    for row, drafted in enumerate(draft.tokens):
        p_V, at = sampler.probabilities(logits_RV[row]), position + row
        q_V = draft.q_RV[row] if draft.q_RV is not None else _point_mass(drafted, p_V)
        if sampler.noise.uniform(at, Purpose.ACCEPT) * q_V[drafted] >= p_V[drafted]:
            residual_V = (p_V - q_V).clamp_(min=0)
            mass = residual_V.sum()
            residual_V = residual_V / mass if mass > 0 else p_V  # p and q equal up to rounding
            tokens.append(_draw(residual_V, sampler.noise.uniform(at, Purpose.RESIDUAL)))
            sampler.commit(tokens[-1])
            return Verdict(tokens, accepted=row)
        tokens.append(drafted)
        sampler.commit(drafted)
    bonus = _draw(sampler.probabilities(logits_RV[-1]), sampler.noise.uniform(position + len(tokens), Purpose.TOKEN))
    sampler.commit(bonus)
    return Verdict([*tokens, bonus], accepted=len(tokens))


def _draw(probabilities_V: Tensor, u: float) -> int:
    """The token in whose share of [0, 1) u falls; never one of probability 0."""
    index = int(torch.searchsorted(probabilities_V.cumsum(0), u, right=True))
    return min(index, int(probabilities_V.nonzero()[-1]))


def _point_mass(token: int, like_V: Tensor) -> Tensor:
    q_V = torch.zeros_like(like_V)
    q_V[token] = 1.0
    return q_V
