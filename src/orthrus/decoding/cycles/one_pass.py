"""The one-pass cycle: one pass verifies the drafts at hand and, from blocks rooted in its own rows, drafts the next.

That is legal because no AR key of a layer depends on a diffusion row, so a block may read the keys of the AR rows
beside it. The block that counts is the one rooted at the last accepted draft, as if a pass of its own had been run
there. Its first row predicts the bonus, which is known by then; its other rows are the next drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from orthrus.cache import CacheWindow
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

DRAFTS_AHEAD = True


def propose(
    runner: Runner, window: CacheWindow, batch: Seq[Sequence], drafting: Drafting, rule: Rule
) -> list[PassPlan]:
    """Verify all drafts at hand, with a block of full width for every number of them that may be accepted, or for the
    first `candidates`."""
    del runner, window, rule
    offered = [len(sequence.ahead.tokens) for sequence in batch]
    blocks = [min(1 + count, drafting.candidates or 1 + count) for count in offered]
    return [
        PassPlan(sequence.ahead, count, own, drafting.width, kind="one-pass")
        for sequence, count, own in zip(batch, offered, blocks, strict=True)
    ]
