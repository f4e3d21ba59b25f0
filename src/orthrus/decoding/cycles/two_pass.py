"""The two-pass cycle: a diffusion pass drafts, an AR pass verifies (arXiv 2605.12825, section 3)."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import Drafting, verify_and_draft
from orthrus.decoding.planning.planner import Shape
from orthrus.decoding.propose import propose
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.runner.runner import Runner

NAME = "two-pass"
DRAFTS_AHEAD = False


def run(runner: Runner, cache: KVCache, batch: list[Sequence], drafting: Drafting, rule: Rule) -> list[Verdict]:
    """Propose, verify, commit: up to min(width, trained rows) drafts and a bonus for two passes."""
    propose(runner, cache.window(0, len(batch)), batch, drafting.width, rule, [True] * len(batch))
    offered = [len(s.ahead.tokens) for s in batch]
    shape = Shape(drafting.width, offered, [0] * len(batch), [NAME] * len(batch))
    return verify_and_draft(runner, cache, batch, shape, rule)
