"""Rule `rejection`: accept a draft with probability min(1, p / q), else resample from max(p - q, 0).

The output is distributed as that of plain AR decoding (Leviathan et al., arXiv 2211.17192, appendix A.1), though not
token for token, and more drafts are accepted than by any rule that fixes the target first. Every random value has a
purpose of its own; a draft's is keyed by its block too, since one position may be drafted from many.
Letters: p target, q draft, u uniform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.noise import Purpose
from orthrus.decoding.rules import Check, Proposal, exact
from orthrus.decoding.sampling import RowRequest, probabilities


def propose(proposals: Sequence[Proposal]) -> list[Draft]:
    """See `Rule`. Each draft is drawn from its row's q, which the draft keeps."""
    greedy = iter(exact.propose([p for p in proposals if p.sampler.params.greedy]))
    sampled = [p for p in proposals if not p.sampler.params.greedy]
    drawn: list[list[int]] = [[] for _ in sampled]
    q = probabilities(
        [
            RowRequest(p.sampler, p.logits_RV, p.position, own, drafting=True)
            for p, own in zip(sampled, drawn, strict=True)
        ]
    )
    drafts = iter([_draft(*each) for each in zip(sampled, q, drawn, strict=True)])
    return [next(greedy) if p.sampler.params.greedy else next(drafts) for p in proposals]


def verify(checks: Sequence[Check]) -> list[Verdict]:
    """See `Rule`. A draft without q is one of a point mass: it was not drawn at all."""
    greedy = iter(exact.verify([c for c in checks if c.sampler.params.greedy]))
    sampled = [c for c in checks if not c.sampler.params.greedy]
    p = iter(probabilities([RowRequest(c.sampler, c.logits_RV, c.position, c.draft.tokens) for c in sampled]))
    return [next(greedy) if c.sampler.params.greedy else _judge(c, next(p)) for c in checks]


def _draft(proposal: Proposal, q: Iterator[Tensor], tokens: list[int]) -> Draft:
    """Append the drafts to `tokens`, since a constraint makes the q of a row depend on the drafts before it.

    Rows from the first on whose q is no distribution (the view gave NaN) draft nothing.
    """
    noise, position, block = proposal.sampler.noise, proposal.position, proposal.block
    rows: list[Tensor] = []
    for row, q_V in enumerate(q):
        rows.append(q_V)
        tokens.append(_draw(q_V, noise.uniform(position + row, Purpose.DRAFT, block)))
    if not rows:
        return Draft()
    q_RV = torch.stack(rows)
    finite = int(q_RV.amax(dim=-1).isfinite().long().cumprod(0).sum())
    return Draft(tokens[:finite], q_RV[:finite])


def _judge(check: Check, p: Iterator[Tensor]) -> Verdict:
    noise, draft = check.sampler.noise, check.draft
    tokens: list[int] = []
    for row, drafted in enumerate(draft.tokens):
        p_V, at = next(p), check.position + row
        q_V = draft.q_RV[row] if draft.q_RV is not None else _point_mass(drafted, p_V)
        if noise.uniform(at, Purpose.ACCEPT) * q_V[drafted] >= p_V[drafted]:
            residual_V = (p_V - q_V).clamp_(min=0)
            mass = residual_V.sum()
            residual_V = residual_V / mass if mass > 0 else p_V  # p and q equal up to rounding
            tokens.append(_draw(residual_V, noise.uniform(at, Purpose.RESIDUAL)))
            break
        tokens.append(drafted)
    else:
        tokens.append(_draw(next(p), noise.uniform(check.position + len(tokens), Purpose.TOKEN)))
    check.sampler.advance(tokens)
    return Verdict(tokens, accepted=len(tokens) - 1)


def _draw(probabilities_V: Tensor, u: float) -> int:
    """The token in whose share of [0, 1) u falls; never one of probability 0."""
    index = int(torch.searchsorted(probabilities_V.cumsum(0), u, right=True))
    if index < len(probabilities_V) and probabilities_V[index] > 0:
        return index
    return min(index, int(probabilities_V.nonzero()[-1]))


def _point_mass(token: int, like_V: Tensor) -> Tensor:
    q_V = torch.zeros_like(like_V)
    q_V[token] = 1.0
    return q_V
