"""Propose: turn diffusion rows into drafts. The rows come from a diffusion pass or from blocks beside AR rows.

Drafts are returned, never written into a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthrus.decoding.argmax import best
from orthrus.decoding.rules import Proposal, Rule
from orthrus.decoding.sequence import Sequence
from orthrus.drafters.tree import DraftTree, Kind
from orthrus.ngrams import Lookup
from orthrus.runner.draft_tree import BlockRows
from orthrus.runner.runner import Runner

EAGER_LOGITS = 32
"""Block rows per pass up to which the head runs over all of them together with the AR rows. That is then faster than
a second call of the head, over the rows of the chosen block alone, after verification."""


def computes_eagerly(runner: Runner, rows: int) -> bool:
    """Whether a pass with AR rows and so many rows of blocks computes the logits of these too. With a draft vocabulary
    it does not: the second call of the head is short, and the AR rows need all of it."""
    return 0 < rows <= EAGER_LOGITS and not (runner.diffusion and runner.diffusion.draft_vocabulary)


def draft_pass(
    runner: Runner, batch: Seq[Sequence], width: int, rule: Rule, wanted: Seq[bool], nodes: int | None = None
) -> list[DraftTree]:
    """New drafts for each sequence that is `wanted`, from one diffusion pass over its anchor and width - 1 masks: trees
    of at most `nodes` nodes, or chains if that is None. Below the depth `trained_rows` there are only tokens that were
    looked up in the text. The others get none."""
    assert runner.diffusion is not None
    rows = min(width, runner.diffusion.trained_rows)
    temperatures = runner.decoder.draft_temperatures()[:rows]
    roots = [s.anchor if wants else None for s, wants in zip(batch, wanted, strict=True)]
    result = runner.diffuse_rows(roots, width, [s.table for s in batch], rows=rows)
    drafting = [s for s, wants in zip(batch, wanted, strict=True) if wants]
    computed = zip(drafting, result.logits.unbind(), result.hidden.unbind(), strict=True)
    proposals = [
        Proposal(s.sampler, logits_RV, s.length, 2 * (s.length - 1), temperatures, nodes, own, Lookup(s.context, 1))
        for s, logits_RV, hidden_RD in computed
        for own in [BlockRows.of(runner, hidden_RD)]
    ]
    drafts = iter(rule.propose(proposals))
    return [next(drafts) if wants else DraftTree() for wants in wanted]


@dataclass(frozen=True)
class Block:
    """A draft block that the last pass computed: its final hidden states [width, D], its logits [width, V] or, if these
    were not computed in the pass, the hidden states again, and the position of its root."""

    rows: Tensor
    hidden_WD: Tensor
    root: int


def drafts_from_blocks(
    runner: Runner,
    batch: Seq[Sequence],
    blocks: Seq[Block],
    rule: Rule,
    nodes: int | None = None,
    *,
    eager_logits: bool,
) -> list[DraftTree]:
    """Drafts from one block of each sequence: trees of at most `nodes` nodes, or chains if that is None.

    The sequence has appended tokens after the root since then. The row that predicts the newest of them, the anchor,
    shows whether the block agrees with the AR view. Rows before it are skipped; rows after it, if any, are the drafts.
    """
    assert runner.diffusion is not None
    trained, temperatures = runner.diffusion.trained_rows, runner.decoder.draft_temperatures()
    starts = [s.length - 1 - block.root for s, block in zip(batch, blocks, strict=True)]
    useful = [block.rows[start - 1 : trained] for block, start in zip(blocks, starts, strict=True)]
    rows_NX = torch.cat(useful) if len(useful) > 1 else useful[0]
    logits_NV = rows_NX if eager_logits else runner.draft_logits(rows_NX)
    logits = logits_NV.split([len(rows) for rows in useful])
    proposals = []
    for s, rows_RV, block, start in zip(batch, logits, blocks, starts, strict=True):
        if len(rows_RV) > 1:
            own = BlockRows.of(runner, block.hidden_WD[start - 1 : trained], s.anchor)
            of_rows = temperatures[start : start + len(rows_RV) - 1]
            proposals.append(
                Proposal(s.sampler, rows_RV[1:], s.length, 2 * block.root + 1, of_rows, nodes, own, Lookup(s.context))
            )
    drawn = iter(rule.propose(proposals))
    drafts = []
    for s, rows_RV, start in zip(batch, logits, starts, strict=True):
        if len(rows_RV) < 2:
            drafts.append(DraftTree())
            continue
        kind: Kind = "agrees" if best(rows_RV[:1]) == [s.anchor] else "differs"
        draft = next(drawn)
        kinds: list[Kind] = ["lookup" if own == "lookup" else kind for own in draft.kinds]
        drafts.append(replace(draft, kinds=kinds, start=start))
    return drafts
