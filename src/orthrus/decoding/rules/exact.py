"""Rule `exact`: the AR view's own token is fixed first; drafts are accepted while they equal it.

The output equals plain AR decoding token for token, whatever the drafts are. Draft and target of a position use the
same noise, so that they agree more often when sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orthrus.decoding.draft_tree import constrained_tree
from orthrus.decoding.rules import Check, Proposal
from orthrus.decoding.sampling import RowRequest, draft_scores, targets
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree

DRAWS = False


def propose(proposals: Sequence[Proposal]) -> list[DraftTree]:
    """See `Rule`. Candidates are ranked with the noise that the target will meet."""
    scores = draft_scores(
        [RowRequest(p.sampler, p.logits_RV, p.position, kernels=p.rows.kernels) for p in proposals], noise=True
    )
    drafts = []
    for proposal, scores_RV in zip(proposals, scores, strict=True):
        grammar, temperatures = proposal.sampler.grammar, proposal.temperatures_R
        tree = (
            proposal.rows.tree(scores_RV, temperatures, proposal.nodes, proposal.lookup)
            if grammar is None
            else constrained_tree(proposal.rows, scores_RV, temperatures, proposal.nodes, grammar, proposal.lookup)
        )
        drafts.append(tree)
    return drafts


def verify(checks: Sequence[Check]) -> list[Verdict]:
    """See `Rule`. Each row assumes that its path is accepted; the rows of all other paths are discarded."""
    found = targets([RowRequest(c.sampler, c.logits_RV, c.position, c.draft.paths, c.kernels) for c in checks])
    verdicts = [_descend(check.draft, target) for check, target in zip(checks, found, strict=True)]
    for check, verdict in zip(checks, verdicts, strict=True):
        check.sampler.advance(verdict.tokens)
    return verdicts


def _descend(draft: DraftTree, target: Callable[[int], int]) -> Verdict:
    """From the anchor, go to the child that equals the target of its parent, while there is one. The target after the
    last node is the bonus token."""
    tokens: list[int] = []
    path: list[int] = []
    node: int | None = -1
    while node is not None:
        tokens.append(target(node + 1))
        node = draft.children.get(node, {}).get(tokens[-1])
        if node is not None:
            path.append(node)
    return Verdict(tokens, path)
