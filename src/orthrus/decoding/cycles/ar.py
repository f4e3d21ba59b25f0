"""The width-1 cycle: no draft, one token per pass. Plain decoding on the same path as the other cycles."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from orthrus.decoding.cycles import Drafting
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

DRAFTS_AHEAD = False


def propose(runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[PassPlan]:
    """Plan passes without drafts: each gives the bonus token only."""
    del runner, rule
    return [PassPlan(width=drafting.width) for _ in batch]
