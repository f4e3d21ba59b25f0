"""Cycles: one file each. Adding a cycle is adding a file with a `run` and `DRAFTS_AHEAD`.

A cycle proposes, verifies and commits for all sequences of a batch; sequence i lives in slot i of the cache.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, replace
from typing import Protocol

from orthrus.cache import KVCache
from orthrus.decoding.planning.planner import Planner, Shape
from orthrus.decoding.propose import EAGER_LOGITS, propose_ahead
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Draft, Sequence, Verdict
from orthrus.runner.runner import Runner


@dataclass(frozen=True)
class Drafting:
    """What a cycle drafts by: rows of a block at most; blocks of a one-pass cycle at most, where they are limited; and
    the planner, which only `auto` asks."""

    width: int
    candidates: int | None = None
    planner: Planner | None = None


class Cycle(Protocol):
    """One propose - verify - commit over a batch."""

    DRAFTS_AHEAD: bool
    """Whether a cycle verifies drafts that an earlier pass made; the prefill then makes the first ones."""

    def run(
        self, runner: Runner, cache: KVCache, batch: list[Sequence], drafting: Drafting, rule: Rule
    ) -> list[Verdict]:
        """Run it. Returns, per sequence, what was kept."""
        ...


def names() -> list[str]:
    """The cycles there are, by listing this folder: `two_pass.py` is `two-pass`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Cycle:
    """The cycle of that name. Raises ValueError with the list where there is none."""
    if name not in names():
        raise ValueError(f"there is no cycle {name!r}; cycles: {', '.join(names())}")
    cycle: Cycle = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cycle


def verify_and_draft(runner: Runner, cache: KVCache, batch: list[Sequence], shape: Shape, rule: Rule) -> list[Verdict]:
    """One pass: verify what each sequence offers of the drafts at hand, and draft the next ones from its blocks.

    The block that counts is rooted at the last accepted draft, or at the last that has a block: see `one_pass`.
    Without blocks it is a plain AR pass, and nothing is at hand afterwards.
    """
    drafts = [replace(s.ahead, tokens=s.ahead.tokens[:n]) for s, n in zip(batch, shape.offered, strict=True)]
    rows = [[s.anchor, *draft.tokens] for s, draft in zip(batch, drafts, strict=True)]
    decided, window = 0 < sum(shape.blocks) * shape.width <= EAGER_LOGITS, cache.window(0, len(batch))
    block_roots = [range(count) for count in shape.blocks]
    logits, found = runner.ar_and_diffuse(rows, block_roots, shape.width, window, eager_logits=decided)
    kept, unfinished, blocks, roots = [], [], [], []
    for slot, (sequence, draft) in enumerate(zip(batch, drafts, strict=True)):
        offered, anchor, own = len(draft.tokens), sequence.length - 1, shape.blocks[slot]
        sequence.count_pass(1 + offered + own * shape.width)
        sequence.count_shape((shape.kinds[slot], offered, own, shape.width))
        verdict = rule.verify(sequence.sampler, logits[slot], draft, sequence.length)
        kept.append(sequence.commit(verdict, shape.kinds[slot], offered))
        cache.commit(slot, sequence.length - 1)
        sequence.ahead = Draft()
        if own and sequence.finish_reason is None:
            chosen = min(verdict.accepted, own - 1)
            unfinished.append(sequence)
            blocks.append(found[slot][chosen])
            roots.append(anchor + chosen)
    if unfinished:
        ahead = propose_ahead(runner, unfinished, blocks, roots, rule, decided=decided)
        for sequence, draft in zip(unfinished, ahead, strict=True):
            sequence.ahead = draft
    return kept
