"""What the planner keeps for one sequence while it is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import AcceptanceHistory
from orthrus.decoding.planning.choice import End
from orthrus.decoding.planning.policy import Policy
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.ngrams import Context, weighed

MIN_MATCH = 3
"""Tokens at the end of the text that must occur earlier in it, for drafts without a block."""
MAX_LOOKUP_DRAFTS = 8
"""The most of these drafts."""


@dataclass
class Account:
    """What the planner stores for one sequence. All seconds are those of the cost model.

    policy: for `solved_for` sequences that share a pass; at `solve_at` verdicts it is solved again. spent_seconds: cost
    of the passes so far. plain_seconds: cost of the same tokens by plain decoding. undrafted_seconds: cost of the plain
    passes since anything was drafted. passes_to_rest: how many more passes need no plan; rests: whether the next one is
    such a pass. block_width: rows of the block that made the drafts at hand. looked_up: the drafts that the text gives
    without a block.
    """

    history: AcceptanceHistory
    looked_up: DraftTree = field(default_factory=DraftTree)
    policy: Policy = field(default_factory=Policy)
    solved_for: int = 0
    solve_at: int = 0
    spent_seconds: float = 0.0
    plain_seconds: float = 0.0
    undrafted_seconds: float = 0.0
    passes_to_rest: int = 0
    rests: bool = False
    block_width: int = 0

    def read(self, sequence: Sequence) -> None:
        """Look up drafts for a sequence that has none or only drawn ones, to which nothing is added."""
        needed = all(q is not None for q in sequence.ahead.q)
        self.looked_up = _looked_up(sequence.context) if needed else DraftTree()

    def observe(self, plan: PassPlan, verdict: Verdict, *, stopped: bool) -> None:
        """Record the verdict on the drafts of a plan, and what the block that made them has yielded."""
        if plan.drafting_rows:
            self.history.observe_block("pass", plan.drafting_rows, plan.draft, plan.probabilities)
        elif plan.draft.start == 1 and plan.draft.from_block:
            self.history.observe_block("beside", self.block_width, plan.draft, plan.probabilities)
        if plan.drafting_rows or plan.draft.from_block:
            self.history.verdicts, self.history.observed = self.history.verdicts + 1, True
        if plan.offered:
            ended = stopped and len(verdict.tokens) == verdict.accepted
            self.history.observe(plan.tree, verdict.path, stopped=ended)
        self.block_width = plan.width

    def candidate(self, sequence: Sequence, draft: DraftTree, drafting_rows: int = 0) -> Candidate:
        """The given drafts, or those looked up where there are none, in order of path probability.

        Where tokens were drawn, whether one is verified may depend neither on itself nor on later ones, so nothing is
        added to drawn drafts: either they or those looked up are verified, whichever have the larger expected number of
        accepted drafts. Under a constraint drawn tokens decide how many drafts there are, so drawn drafts are always
        verified.
        """
        draft, probabilities = draft if draft.tokens else self.looked_up, self.history.probabilities
        if not draft.tokens:
            return Candidate(sequence, self, draft, [], drafting_rows)
        drawn = any(q is not None for q in draft.q)
        if drawn and sequence.sampler.grammar is not None:
            return Candidate(sequence, self, draft, probabilities(draft), drafting_rows, discards=False)
        if drawn:
            draft = max(draft, self.looked_up, key=lambda one: sum(probabilities(one)))
            return Candidate(sequence, self, draft, probabilities(draft), drafting_rows)
        reached = probabilities(draft)
        order = sorted(range(len(reached)), key=lambda node: -reached[node])
        return Candidate(sequence, self, draft.in_order(order), [reached[node] for node in order], drafting_rows)


@dataclass(frozen=True)
class Candidate:
    """One sequence while a pass is planned. draft: the drafts at hand. probabilities: of its nodes to be accepted.
    drafting_rows: rows of the diffusion pass that has just made them, 0 if none has. discards: whether a diffusion pass
    may replace them."""

    sequence: Sequence
    account: Account
    draft: DraftTree
    probabilities: list[float]
    drafting_rows: int = 0
    discards: bool = True

    def value(self, offered: int, roots: list[End]) -> float:
        """The tokens that a pass is worth which verifies `offered` nodes beside blocks at these roots."""
        return 1 + sum(self.probabilities[:offered]) + self.account.policy.block_value * sum(end for end, _ in roots)

    def plan(self, offered: int, roots: list[End], width: int, *, refresh: bool) -> PassPlan:
        """The plan of that pass."""
        kind = "ar"
        if self.drafting_rows:
            kind = "two-pass"
        elif roots or offered:
            from_block = any(source != "lookup" for source in self.draft.kinds[:offered])
            kind = "one-pass" if roots or from_block else "lookup"
        nodes = tuple(sorted(node for _, node in roots))
        return PassPlan(self.draft, offered, nodes, width, kind, refresh, self.drafting_rows, self.probabilities)

    def ends(self, offered: int, count: int) -> list[End]:
        """The `count` likeliest ends of the accepted path of the first `offered` nodes."""
        ends, parents = [1.0, *self.probabilities[:offered]], self.draft.parents
        for node in range(offered):
            ends[parents[node] + 1] -= self.probabilities[node]
        likeliest = sorted([(-end, node) for node, end in enumerate(ends, -1)])[:count]
        return [(-negative, node) for negative, node in likeliest]


def _looked_up(context: Context) -> DraftTree:
    """The chain of tokens that followed the newest ones when they occurred before."""
    match = context.after()
    if match is None or match.length < MIN_MATCH:
        return DraftTree()
    options = [weighed((), own)[0] for own in context.following(match, MAX_LOOKUP_DRAFTS)]
    return DraftTree.chain([own.token for own in options], [math.exp(own.log_p) for own in options], "lookup")
