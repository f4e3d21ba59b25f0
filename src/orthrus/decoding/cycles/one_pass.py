"""The one-pass cycle: one pass verifies the drafts at hand and, from blocks rooted in its own rows, drafts the next.

That is legal because no AR key of a layer depends on a diffusion row, so a block may read the keys of the AR rows
beside it. The block that counts is the one rooted at the last accepted draft, as if a pass of its own had been run
there; its first row predicts the bonus, which is known by then, and its other rows are the next drafts.
"""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import Drafting, verify_and_draft
from orthrus.decoding.planning.planner import Shape
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.runner.runner import Runner

NAME = "one-pass"
DRAFTS_AHEAD = True


def run(runner: Runner, cache: KVCache, batch: list[Sequence], drafting: Drafting, rule: Rule) -> list[Verdict]:
    """Verify all that is ahead, with a block of full width for every number of drafts that may be accepted, or for the
    first `candidates` of them."""
    offered = [len(s.ahead.tokens) for s in batch]
    blocks = [min(1 + n, drafting.candidates or 1 + n) for n in offered]
    shape = Shape(drafting.width, offered, blocks, [NAME] * len(batch))
    return verify_and_draft(runner, cache, batch, shape, rule)
