"""The width-1 cycle: no draft, one token for one pass. Plain decoding on the same path as the other cycles."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import Drafting, verify_and_draft
from orthrus.decoding.planning.planner import Shape
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.runner.runner import Runner

NAME = "ar"
DRAFTS_AHEAD = False


def run(runner: Runner, cache: KVCache, batch: list[Sequence], drafting: Drafting, rule: Rule) -> list[Verdict]:
    """Verify nothing, commit the bonus."""
    nothing = [0] * len(batch)
    return verify_and_draft(runner, cache, batch, Shape(drafting.width, nothing, nothing, [NAME] * len(batch)), rule)
