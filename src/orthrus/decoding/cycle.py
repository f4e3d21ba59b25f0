"""One cycle over a batch: propose, verify, commit. Sequence i lives in slot i of the cache."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from torch import Tensor

from orthrus.cache import KVCache
from orthrus.decoding.cycles import Cycle, Drafting
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.propose import EAGER_LOGITS, Block, drafts_from_blocks
from orthrus.decoding.rules import Check, Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner


def run(
    cycle: Cycle, runner: Runner, cache: KVCache, batch: Seq[Sequence], drafting: Drafting, rule: Rule
) -> list[Verdict]:
    """Run one cycle. Returns the verdict of each sequence, cut where the sequence stopped."""
    plans = cycle.propose(runner, cache.window(0, len(batch)), batch, drafting, rule)
    eager_logits = 0 < sum(plan.blocks * plan.width for plan in plans) <= EAGER_LOGITS
    verdicts, blocks = _verify(runner, cache, batch, plans, rule, eager_logits=eager_logits)
    kept = _commit(cache, batch, plans, verdicts)
    _draft_ahead(runner, batch, plans, kept, blocks, rule, eager_logits=eager_logits)
    if drafting.planner is not None:
        drafting.planner.learn(batch, plans, kept)
    return kept


def _verify(
    runner: Runner, cache: KVCache, batch: Seq[Sequence], plans: Seq[PassPlan], rule: Rule, *, eager_logits: bool
) -> tuple[list[Verdict], list[Tensor]]:
    """Run one pass that verifies the drafts and computes the draft blocks. Without blocks it is a plain AR pass."""
    rows = [[s.anchor, *plan.tokens] for s, plan in zip(batch, plans, strict=True)]
    block_roots = [range(plan.blocks) for plan in plans]
    width = max(plan.width for plan in plans)
    window = cache.window(0, len(batch))
    logits, blocks = runner.ar_and_diffuse(rows, block_roots, width, window, eager_logits=eager_logits)
    checks = [
        Check(s.sampler, logits_RV, replace(plan.draft, tokens=plan.tokens), s.length)
        for s, logits_RV, plan in zip(batch, logits, plans, strict=True)
    ]
    return rule.verify(checks), blocks


def _commit(cache: KVCache, batch: Seq[Sequence], plans: Seq[PassPlan], verdicts: Seq[Verdict]) -> list[Verdict]:
    """Append the kept tokens to each sequence, and set its cache length, which counts all tokens but the newest."""
    kept = []
    for slot, (sequence, plan, verdict) in enumerate(zip(batch, plans, verdicts, strict=True)):
        kept.append(sequence.append(verdict, plan))
        cache.commit(slot, sequence.length - 1)
    return kept


def _draft_ahead(
    runner: Runner,
    batch: Seq[Sequence],
    plans: Seq[PassPlan],
    kept: Seq[Verdict],
    blocks: Seq[Tensor],
    rule: Rule,
    *,
    eager_logits: bool,
) -> None:
    """Set the drafts of the next cycle (`Sequence.ahead`).

    They come from the block rooted at the last accepted draft or, where that draft has no block, from the last block
    before it. A sequence without blocks gets no drafts.
    """
    drafting: list[Sequence] = []
    chosen: list[Block] = []
    for sequence, plan, verdict, own in zip(batch, plans, kept, blocks, strict=True):
        sequence.ahead = Draft()
        if plan.blocks and sequence.finish_reason is None:
            block = min(verdict.accepted, plan.blocks - 1)
            anchor = sequence.length - 1 - len(verdict.tokens)
            drafting.append(sequence)
            chosen.append(Block(own[block], anchor + block))
    if drafting:
        drafts = drafts_from_blocks(runner, drafting, chosen, rule, eager_logits=eager_logits)
        for sequence, draft in zip(drafting, drafts, strict=True):
            sequence.ahead = draft
