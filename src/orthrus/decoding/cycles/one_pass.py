"""The one-pass cycle: one pass verifies the drafts at hand and drafts the next ones, in blocks rooted in its AR rows.

AR keys do not depend on diffusion rows in any layer, so a block may attend to the AR rows of its own pass. After
verification, the block rooted at the last accepted draft is used or, where that has none, that of its nearest ancestor.
A diffusion pass at that root would compute the same, up to the low-precision weights of passes that only draft. The
first row of the block predicts the bonus token, which is known by then; its other rows are the next drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from orthrus.decoding.cycles import Drafting
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

DRAFTS_AHEAD = True


def propose(runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[PassPlan]:
    """Verify all drafts at hand, beside one block of full width rooted in the anchor and in every node of the tree, or
    in the first `candidates` of these."""
    del runner, rule
    plans = []
    for sequence in batch:
        offered = len(sequence.ahead.tokens)
        roots = tuple(range(-1, offered))[: drafting.candidates]
        plans.append(PassPlan(sequence.ahead, offered, roots, drafting.width, kind="one-pass"))
    return plans
