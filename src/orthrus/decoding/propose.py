"""Propose: turn diffusion rows into drafts. The rows come from a diffusion pass or from blocks beside AR rows.

Drafts are returned, never written into a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthrus.decoding.drafts import Draft, Kind
from orthrus.decoding.rules import Proposal, Rule
from orthrus.decoding.sampling import best
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner

EAGER_LOGITS = 32
"""Block rows per pass up to which the head runs over all of them together with the AR rows. That is then faster than
a second call of the head, over the rows of the chosen block alone, after verification."""


def draft_pass(runner: Runner, batch: Seq[Sequence], width: int, rule: Rule, wanted: Seq[bool]) -> list[Draft]:
    """New drafts for each sequence that is `wanted`, at most `trained_rows`, from one diffusion pass over its anchor
    and width - 1 masks. The other sequences get none."""
    assert runner.diffusion is not None
    rows = min(width, runner.diffusion.trained_rows)
    roots = [s.anchor if wants else None for s, wants in zip(batch, wanted, strict=True)]
    logits_BRV = runner.diffuse(roots, width, [s.table for s in batch], rows=rows)
    drafting = [s for s, wants in zip(batch, wanted, strict=True) if wants]
    proposals = [
        Proposal(s.sampler, logits_RV, s.length, 2 * (s.length - 1))
        for s, logits_RV in zip(drafting, logits_BRV, strict=True)
    ]
    drafts = iter(_with_confidence(runner, rule.propose(proposals), [p.logits_RV for p in proposals]))
    return [next(drafts) if wants else Draft() for wants in wanted]


@dataclass(frozen=True)
class Block:
    """A draft block that the last pass computed: its final hidden states [width, D], or its logits [width, V] if these
    were computed in the pass, and the position of its root."""

    rows: Tensor
    root: int


def drafts_from_blocks(
    runner: Runner, batch: Seq[Sequence], blocks: Seq[Block], rule: Rule, *, eager_logits: bool
) -> list[Draft]:
    """Drafts from one block of each sequence.

    The sequence has appended tokens after the root since then. The row that predicts the newest of them, the anchor,
    shows whether the block agrees with the AR view. Rows before it are skipped; rows after it, if any, are the drafts.
    """
    assert runner.diffusion is not None
    trained = runner.diffusion.trained_rows
    starts = [s.length - 1 - block.root for s, block in zip(batch, blocks, strict=True)]
    useful = [block.rows[start - 1 : trained] for block, start in zip(blocks, starts, strict=True)]
    logits_NV = torch.cat(useful) if eager_logits else runner.draft_logits(torch.cat(useful))
    logits = logits_NV.split([len(rows) for rows in useful])
    proposals = [
        Proposal(s.sampler, logits_RV[1:], s.length, 2 * block.root + 1)
        for s, logits_RV, block in zip(batch, logits, blocks, strict=True)
        if len(logits_RV) > 1
    ]
    drawn = iter(_with_confidence(runner, rule.propose(proposals), [p.logits_RV for p in proposals]))
    drafts = []
    for s, logits_RV, start in zip(batch, logits, starts, strict=True):
        if len(logits_RV) < 2:
            drafts.append(Draft())
            continue
        kind: Kind = "agrees" if best(logits_RV[:1]) == [s.anchor] else "differs"
        drafts.append(replace(next(drawn), kind=kind, start=start))
    return drafts


def _with_confidence(runner: Runner, drafts: list[Draft], logits: list[Tensor]) -> list[Draft]:
    """The drafts with the top-1 probability of each row as confidence. It depends on the distributions alone, never on
    the tokens sampled from them. It is 0 where the logits are NaN."""
    if not drafts:
        return []
    top1_N = runner.top1_probability(torch.cat(logits)).nan_to_num(nan=0.0)
    rows = [top1_R.tolist() for top1_R in top1_N.split([len(logits_RV) for logits_RV in logits])]
    return [replace(draft, confidence=own[: len(draft.tokens)]) for draft, own in zip(drafts, rows, strict=True)]
