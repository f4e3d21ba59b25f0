"""Rule `rejection`: accept a draft with probability min(1, p / q), else go on with the residual max(p - q, 0).

The siblings of a node are verified one after another, each against the residual that those before it left; if none
is accepted, the token is drawn from the last residual (Leviathan et al., arXiv 2211.17192, appendix A.1; SpecInfer,
arXiv 2305.09781, section 4.3). The output is distributed as that of plain AR decoding, though not token for token,
and more drafts are accepted than by any rule that fixes the target first.

The shape of a tree depends on the distributions q alone, never on a drawn token. Siblings are drawn without
replacement, so the q of each is without the tokens of those before it. Nodes that were not drawn, which have a point
mass as q, are tried after those that were: whether they exist may depend on what was drawn. Every random value has a
purpose of its own; a draft's is keyed by its block and node too, since one position may be drafted from many.
Letters: p target, q draft, u uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from orthrus.decoding.filters import softmax
from orthrus.decoding.noise import Purpose
from orthrus.decoding.rules import Check, Proposal, exact
from orthrus.decoding.sampling import RowRequest, distributions, draft_scores
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree

DRAWS = True


def propose(proposals: Sequence[Proposal]) -> list[DraftTree]:
    """See `Rule`. Each token is drawn from the q of its row, which the draft keeps."""
    greedy = iter(exact.propose([p for p in proposals if p.sampler.params.greedy]))
    sampled = [p for p in proposals if not p.sampler.params.greedy]
    scores = draft_scores([RowRequest(p.sampler, p.logits_RV, p.position) for p in sampled], noise=False)
    drafts = iter([_draft(*each) for each in zip(sampled, scores, strict=True)])
    return [next(greedy) if p.sampler.params.greedy else next(drafts) for p in proposals]


def verify(checks: Sequence[Check]) -> list[Verdict]:
    """See `Rule`."""
    greedy = iter(exact.verify([c for c in checks if c.sampler.params.greedy]))
    sampled = [c for c in checks if not c.sampler.params.greedy]
    p = iter(distributions([RowRequest(c.sampler, c.logits_RV, c.position, c.draft.paths) for c in sampled]))
    return [next(greedy) if c.sampler.params.greedy else _judge(c, next(p)) for c in checks]


def _draft(proposal: Proposal, scores_RV: Tensor) -> DraftTree:
    """Draw the nodes of a tree in order. A node is left out where its siblings have taken all that q allows, where a
    constraint ends the answer before it, or where its parent was left out."""
    noise, rows = proposal.sampler.noise, _Rows(proposal, scores_RV)
    temperatures = [rows.temperature] * len(scores_RV)
    shape = proposal.rows.tree(scores_RV, temperatures, proposal.nodes)
    draft, numbers = DraftTree(), {-1: -1}
    for node, (place, sure) in enumerate(zip(shape.parents, shape.confidence, strict=True)):
        parent = numbers.get(place)
        if parent is None:
            continue
        path = draft.paths[parent + 1]
        q_V = rows.after(path)
        left_V = None if q_V is None else _without(q_V, draft.children.get(parent, {}))
        if q_V is None or left_V is None:
            continue
        token = _draw(left_V, noise.uniform(proposal.position + len(path), Purpose.DRAFT, proposal.block, node))
        numbers[node] = len(draft.tokens)
        draft = draft.grown(token, parent, sure, q_V)
    return draft


class _Rows:
    """The distributions from which the children of a path are drawn: those of the rows of a block, in which the draft
    head corrects the candidates by the token drawn before them."""

    def __init__(self, proposal: Proposal, scores_RV: Tensor) -> None:
        self._proposal, self._scores_RV = proposal, scores_RV
        self.temperature = proposal.sampler.params.temperature
        self._known: dict[int, Tensor] = {}

    def after(self, path: Sequence[int]) -> Tensor | None:
        """q [V] after a path of drafts; None where a constraint lets nothing follow."""
        q_V, rows = self._independent(path), self._proposal.rows
        if q_V is None or not rows.follows(path):
            return q_V
        found = rows.after(path, q_V.log()[None] * self.temperature, self.temperature)
        corrected_V = q_V.clone()
        corrected_V[found.tokens] = 0.0
        rest = float(corrected_V.sum())
        corrected_V *= max(0.0, 1.0 - sum(found.confidence)) / rest if rest > 0 else 0.0
        corrected_V[found.tokens] = torch.tensor(found.confidence, device=q_V.device)
        return corrected_V / corrected_V.sum() if found.tokens else q_V

    def _independent(self, path: Sequence[int]) -> Tensor | None:
        """The same without the draft head."""
        sampler, row = self._proposal.sampler, len(path)
        if sampler.grammar is not None:
            if not sampler.grammar.goes_on(path):
                return None
            logits_1V = self._proposal.logits_RV[row : row + 1]
            (q,) = distributions([RowRequest(sampler, logits_1V, self._proposal.position, [path])])
            return q(0)
        if row not in self._known:
            self._known[row] = softmax(self._scores_RV[row] / self.temperature)
        return self._known[row]


def _judge(check: Check, p: Callable[[int], Tensor]) -> Verdict:
    """Walk down from the anchor: at each node, verify its children one after another."""
    noise, draft = check.sampler.noise, check.draft
    tokens: list[int] = []
    path: list[int] = []
    node: int | None = -1
    while node is not None:
        at, p_V = check.position + len(tokens), p(node + 1)
        children = _in_turn(draft, node)
        node = None
        for rank, child in enumerate(children):
            token = draft.tokens[child]
            q_V = _q_of(draft, child, [draft.tokens[before] for before in children[:rank]], p_V)
            if not noise.uniform(at, Purpose.ACCEPT, 0, rank) * q_V[token] >= p_V[token]:
                tokens.append(token)
                path.append(child)
                node = child
                break
            p_V = _residual(p_V, q_V)
        else:
            tokens.append(_draw(p_V, noise.uniform(at, Purpose.RESIDUAL if children else Purpose.TOKEN)))
    check.sampler.advance(tokens)
    return Verdict(tokens, path)


def _in_turn(draft: DraftTree, node: int) -> list[int]:
    """The children of a node in the order in which they are tried: those that were drawn first."""
    return sorted(draft.children.get(node, {}).values(), key=lambda child: (draft.q[child] is None, child))


def _q_of(draft: DraftTree, child: int, before: Sequence[int], like_V: Tensor) -> Tensor:
    """The distribution of a child, given the siblings tried before it."""
    q_V = draft.q[child]
    left_V = None if q_V is None else _without(q_V, before)
    if left_V is not None:
        return left_V
    point_V = torch.zeros_like(like_V)
    point_V[draft.tokens[child]] = 1.0
    return point_V


def _residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    residual_V = (p_V - q_V).clamp_(min=0)
    mass = residual_V.sum()
    return residual_V / mass if mass > 0 else p_V  # p and q equal up to rounding


def _without(q_V: Tensor, tokens: Collection[int]) -> Tensor | None:
    """q without some tokens; None if nothing is left."""
    if not tokens:
        return q_V
    left_V = q_V.clone()
    left_V[list(tokens)] = 0.0
    mass = left_V.sum()
    return left_V / mass if mass > 0 else None


def _draw(probabilities_V: Tensor, u: float) -> int:
    """The token in whose share of [0, 1) u falls; never one of probability 0."""
    index = int(torch.searchsorted(probabilities_V.cumsum(0), u, right=True))
    if index < len(probabilities_V) and probabilities_V[index] > 0:
        return index
    return min(index, int(probabilities_V.nonzero()[-1]))
