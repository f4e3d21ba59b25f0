"""Simulated drafts, and the planner at work on them: its tokens per second, by a cost model.

The first candidate of a row of a block is right with a given probability, and `RANKS` shares out the rest. A draft's
confidence is its true probability, except in a block that did not predict the bonus token: there drafts are accepted
less often than their confidence says, by `miss_factor`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import count

from orthrus.config import DiffusionConfig, StopConditions
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.sequence import Limits, Request, Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.growth import Option, grow
from orthrus.drafters.tree import DraftTree

RANKS = (0.40, 0.14, 0.08, 0.03)
"""Of the cases in which the first candidate of a row is wrong, the share in which the next ones are right. Measured
with the bundled view and its draft head at the roots of six GSM8K answers, rows 1 to 7: 0.31 to 0.54 for the second."""
VOCABULARY = 1 << 20


@dataclass(frozen=True)
class Drafts:
    """Where simulated drafts come from. by_offset: the probability of the first candidate of each row of a block, the
    row of the root first; miss_factor: see the top of this file; nodes: of a tree."""

    by_offset: Seq[float]
    miss_factor: float
    nodes: int

    def tree(self, first: int, width: int, tokens: Iterator[int]) -> DraftTree:
        """The tree of a block of `width` rows from the row `first` on."""
        tops = self.by_offset[first:width]
        rows = [sorted([top, *((1 - top) * share for share in RANKS)], reverse=True) for top in tops]
        options = [[Option(rank, math.log(share)) for rank, share in enumerate(row) if share > 0] for row in rows]
        tree = grow(lambda path: options[len(path)] if len(path) < len(options) else (), self.nodes)
        return DraftTree.tree([next(tokens) for _ in tree.tokens], tree.parents, tree.confidence)

    def beside(self, first: int, width: int, tokens: Iterator[int], *, hit: bool) -> DraftTree:
        """The same from a block beside AR rows, which did or did not predict the bonus token."""
        draft = self.tree(first, width, tokens)
        return replace(draft, kinds=["agrees" if hit else "differs"] * len(draft.tokens), start=first)

    def accepted(self, rng: random.Random, tree: DraftTree) -> list[int]:
        """The accepted path of a tree."""
        path: list[int] = []
        found: int | None = -1
        while found is not None:
            at, found, left = found, None, rng.random()
            for node in tree.children.get(at, {}).values():
                left -= tree.confidence[node] * (self.miss_factor if tree.kinds[node] == "differs" else 1.0)
                if left < 0:
                    found = node
                    path.append(node)
                    break
        return path


def tokens_per_second(costs: CostModel, drafts: Drafts, batch: int, context: int, tokens: int, seed: int = 0) -> float:
    """Of a planner that decodes `batch` sequences of `tokens` tokens each on average, all of which begin together."""
    width, rng, fresh_tokens = len(drafts.by_offset), random.Random(seed), count(context)
    planner = Planner(DiffusionConfig(width, 0, width), width, costs)
    most = batch * tokens
    limits = Limits(VOCABULARY, context + most, frozenset())
    request = Request(tuple(range(context)), stop=StopConditions(max_new_tokens=most))
    sequences = [Sequence(index, request, limits) for index in range(batch)]
    for sequence in sequences:
        sequence.start(next(fresh_tokens))
    seconds = 0.0
    while sum(len(sequence.tokens) for sequence in sequences) < most:
        planner.begin_pass(sequences)
        plans = planner.plan(sequences)
        made = [drafts.tree(0, p.width, fresh_tokens) if p.refresh else DraftTree() for p in plans]
        if any(plan.refresh for plan in plans):
            seconds += costs.diffuse(sum(p.refresh for p in plans), max(p.width for p in plans), context)
            plans = planner.replan(sequences, plans, made)
        rows, blocks = sum(1 + plan.offered for plan in plans), sum(plan.blocks for plan in plans)
        seconds += costs.ragged(batch, rows, blocks, max(plan.width for plan in plans), context)
        kept = [_advance(*pair, drafts, rng, fresh_tokens) for pair in zip(sequences, plans, strict=True)]
        planner.learn(sequences, plans, kept)
    return sum(len(sequence.tokens) - 1 for sequence in sequences) / seconds


def _advance(sequence: Sequence, plan: PassPlan, drafts: Drafts, rng: random.Random, tokens: Iterator[int]) -> Verdict:
    """Verify a plan, and draft ahead from its blocks."""
    path = drafts.accepted(rng, plan.tree)
    kept = sequence.append(Verdict([*(plan.tree.tokens[node] for node in path), next(tokens)], path), plan)
    chosen, sequence.ahead = plan.block_for(kept.path), DraftTree()
    if chosen is not None and (first := 1 + len(kept.path) - chosen[1]) <= len(drafts.by_offset):
        hit = rng.random() < drafts.by_offset[first - 1]
        sequence.ahead = drafts.beside(first, plan.width, tokens, hit=hit)
    return kept
