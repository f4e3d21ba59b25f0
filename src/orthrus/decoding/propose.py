"""Propose: diffusion rows become drafts, from a pass of their own or from blocks that shared an AR pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from orthrus.cache import CacheWindow
from orthrus.decoding.rules import Rule
from orthrus.decoding.sampling import best
from orthrus.decoding.sequence import Draft, Kind, Sequence
from orthrus.runner.runner import Runner

EAGER_LOGITS = 32
"""Rows of blocks up to which it is cheaper to run the head over all of them, with the AR rows, than over one later."""


def propose(
    runner: Runner, window: CacheWindow, batch: list[Sequence], width: int, rule: Rule, wanted: list[bool]
) -> None:
    """Give each sequence that wants them fresh drafts, at most `trained_rows`: one diffusion pass over its anchor and
    width - 1 masks."""
    assert runner.diffusion is not None
    rows, drafting = min(width, runner.diffusion.trained_rows), [s for s, w in zip(batch, wanted, strict=True) if w]
    roots = [s.anchor if wants else None for s, wants in zip(batch, wanted, strict=True)]
    for s, logits_RV in zip(drafting, runner.diffuse(roots, width, window, rows=rows), strict=True):
        s.count_pass(width)
        draft = rule.propose(s.sampler, logits_RV, s.length, 2 * (s.length - 1))
        s.ahead = replace(draft, confidence=sureness(runner, logits_RV)[: len(draft.tokens)])


def propose_ahead(
    runner: Runner, batch: list[Sequence], blocks: list[Tensor], roots: list[int], rule: Rule, *, decided: bool
) -> list[Draft]:
    """Drafts from blocks of the pass just run: final hidden states [width, D] of each, or, where that was `decided`,
    logits [width, V], and its root's position.

    A sequence has committed more tokens than the root since. The row that predicts the newest of them, the anchor,
    tells whether the block foresaw it; the rows before it are passed over, those after it are the drafts. There may be
    none. Of the head's work only what is needed is done.
    """
    assert runner.diffusion is not None
    trained = runner.diffusion.trained_rows
    starts = [s.length - 1 - root for s, root in zip(batch, roots, strict=True)]
    useful = [block[start - 1 : trained] for block, start in zip(blocks, starts, strict=True)]
    logits_NV = torch.cat(useful) if decided else runner.draft_logits(torch.cat(useful))
    drafts = []
    for s, logits_RV, root, start in zip(batch, logits_NV.split([len(r) for r in useful]), roots, starts, strict=True):
        if len(logits_RV) < 2:
            drafts.append(Draft())
            continue
        foreseen = best(logits_RV[:1]) == [s.anchor]
        draft = rule.propose(s.sampler, logits_RV[1:], s.length, 2 * root + 1)
        kind: Kind = "agrees" if foreseen else "differs"
        confidence = sureness(runner, logits_RV[1:])[: len(draft.tokens)]
        drafts.append(replace(draft, kind=kind, start=start, confidence=confidence))
    return drafts


def sureness(runner: Runner, logits_RV: Tensor) -> list[float]:
    """The largest probability of each row: of its distribution alone, never of the token that was drawn from it.

    0 where the logits are no distribution.
    """
    found: list[float] = runner.top1_probability(logits_RV).nan_to_num(nan=0.0).tolist()
    return found
