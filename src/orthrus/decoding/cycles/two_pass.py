"""The two-pass cycle: a diffusion pass drafts, an AR pass verifies (arXiv 2605.12825, section 3)."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from orthrus.decoding.cycles import Drafting
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.propose import draft_pass
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

DRAFTS_AHEAD = False


def propose(runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[PassPlan]:
    """Run a diffusion pass, and plan an AR pass that verifies all its drafts."""
    width = drafting.width
    drafts = draft_pass(runner, batch, width, rule, [True] * len(batch), drafting.nodes)
    return [PassPlan(draft, len(draft.tokens), kind="two-pass", width=width, drafting_rows=width) for draft in drafts]
