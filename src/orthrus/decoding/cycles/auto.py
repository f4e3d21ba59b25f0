"""The planned cycle: whatever pass the planner expects most of, a plain one included."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import Drafting, verify_and_draft
from orthrus.decoding.propose import propose
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.runner.runner import Runner

NAME = "auto"
DRAFTS_AHEAD = True


def run(runner: Runner, cache: KVCache, batch: list[Sequence], drafting: Drafting, rule: Rule) -> list[Verdict]:
    """Plan, draft anew where that pays, verify and draft in the planned shape, learn from the verdicts."""
    planner = drafting.planner
    assert planner is not None
    shape = planner.choose(batch)
    if any(shape.redraft):
        propose(runner, cache.window(0, len(batch)), batch, shape.width, rule, shape.redraft)
        shape = planner.choose(batch, after=shape)
    drafts = [sequence.ahead for sequence in batch]
    kept = verify_and_draft(runner, cache, batch, shape, rule)
    planner.learn(batch, drafts, shape, kept)
    return kept
