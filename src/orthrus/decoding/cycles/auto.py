"""The planned cycle: the planner chooses the pass with the highest expected tokens per second, plain or not."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from orthrus.decoding.cycles import Drafting
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.propose import draft_pass
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

DRAFTS_AHEAD = True


def propose(runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[PassPlan]:
    """Plan the next pass. Where a refresh pays, run a diffusion pass first and plan again with its drafts."""
    planner = drafting.planner
    assert planner is not None
    planner.begin_pass(batch)
    plans = planner.plan(batch)
    refresh = [plan.refresh for plan in plans]
    if not any(refresh):
        return plans
    drafts = draft_pass(runner, batch, max(plan.width for plan in plans), rule, refresh, drafting.nodes)
    return planner.replan(batch, plans, drafts)
