"""What the planner keeps for one sequence while it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from orthrus.decoding.drafts import Draft
from orthrus.decoding.planning.acceptance import AcceptanceHistory
from orthrus.decoding.planning.policy import Policy
from orthrus.decoding.planning.prompt_lookup import MAX_MATCH, PromptLookup
from orthrus.decoding.sequence import Sequence

MAX_LOOKUP_DRAFTS = 8
"""Maximum tokens drafted by prompt lookup."""


@dataclass
class Account:
    """What the planner stores for one sequence. All seconds are those of the cost model.

    solved_for: the number of sequences that shared a pass when `policy` was solved, and the verdict count at which it
    is solved again. spent_seconds: cost of the passes so far. plain_seconds: cost of the same tokens by plain decoding.
    undrafted_seconds: cost of the plain passes since anything was drafted. unplanned_passes: how many more passes run
    without planning. skips_planning: whether the next pass is one of them.
    """

    history: AcceptanceHistory
    lookup: PromptLookup = field(default_factory=PromptLookup)
    policy: Policy | None = None
    solved_for: tuple[int, int] = (0, 0)
    spent_seconds: float = 0.0
    plain_seconds: float = 0.0
    undrafted_seconds: float = 0.0
    unplanned_passes: int = 0
    skips_planning: bool = False

    def read(self, sequence: Sequence) -> None:
        """Index the tokens that were appended since the last call."""
        self.lookup.extend(sequence.tokens[len(self.lookup) - len(sequence.request.prompt) :])

    def best_draft(self, draft: Draft) -> Draft:
        """The given draft, or that of prompt lookup if more of its tokens are expected to be accepted."""
        tokens, length = self.lookup.propose(MAX_LOOKUP_DRAFTS)
        if not tokens:
            return draft
        looked_up = Draft(tokens, None, "lookup", 0, [length / MAX_MATCH] * len(tokens))
        acceptance = self.history.acceptance
        return looked_up if acceptance(looked_up).cumprod().sum() > acceptance(draft).cumprod().sum() else draft


@dataclass(frozen=True)
class Candidate:
    """One sequence while a pass is planned. draft: the drafts at hand. drafting_rows: rows of the diffusion pass that
    has just made them, 0 if none has."""

    sequence: Sequence
    account: Account
    draft: Draft
    drafting_rows: int = 0
