"""Replay: the cycles that decoding a known text takes, computed from the drafts at every root of the text.

A text is decoded once, plainly. The blocks at all its roots are computed in wide passes, many at a time. Then each
setting (chain or tree, with or without the draft head, two-pass, one-pass or planned) is replayed: a two-pass cycle
drafts from the block at its anchor; a one-pass cycle from the block rooted at the last accepted draft that has one; a
planned cycle is planned by a cost table, by the planner itself.

A run with the same settings takes exactly the replayed cycles, under the rule `exact`: a row of a block has the same
bits whatever else is in its pass, where attention is ragged. With a mask, drafts of nearly equal logits may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from orthrus.api import Model, Options
from orthrus.bench import exactness
from orthrus.bench.tasks import TaskPrompt
from orthrus.cache import BlockTable
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.cycles import one_pass as one_pass_cycle
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.propose import Block, computes_eagerly, drafts_from_blocks
from orthrus.decoding.rules import Proposal, exact
from orthrus.decoding.sequence import Request
from orthrus.decoding.sequence import Sequence as Decoded
from orthrus.decoding.statistics import Statistics
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.ngrams import Context, Lookup
from orthrus.runner.draft_tree import BlockRows
from orthrus.runner.layout import chunks
from orthrus.runner.runner import Runner

CANDIDATES = (1, 2, 4)
"""The most blocks of the one-pass cycles that are replayed."""
TREES = (4, 8, 16, 32)
"""The sizes of the trees of two-pass cycles that are replayed, in nodes; one-pass cycles are with ONE_PASS_NODES."""
ONE_PASS_NODES = 8
ROWS = 128
"""Rows of blocks per pass."""


class Way(NamedTuple):
    """How drafts are chosen: by a chain or by trees, by the draft head or by independent rows, and by what followed
    them in the text before or not."""

    chain: bool
    head: bool
    lookup: bool = True


class Reached(NamedTuple):
    """The drafts at one root: the nodes that the text goes through, and how deep the tree of the first n nodes is, for
    every n."""

    path: list[int]
    depths: list[int]

    @staticmethod
    def of(draft: DraftTree, truth: Sequence[int]) -> Reached:
        """truth: the tokens of the text after the root."""
        depths, path, node = [0], list[int](), -1
        for parent in draft.parents:
            depths.append(max(depths[-1], len(draft.paths[parent + 1]) + 1))
        for token in truth:
            node = draft.children.get(node, {}).get(token, -1)
            if node < 0:
                break
            path.append(node)
        return Reached(path, depths)

    def first(self, nodes: int | None) -> tuple[int, int, int]:
        """Of the tree of the first `nodes` nodes, or of all: how many it has, how many are accepted, and its depth."""
        offered = len(self.depths) - 1 if nodes is None else min(nodes, len(self.depths) - 1)
        return offered, sum(node < offered for node in self.path), self.depths[offered]


@dataclass(frozen=True)
class Text:
    """A known answer, and the model that gave it. `request.prompt` and `tokens` are prompt and answer."""

    model: Model
    request: Request
    tokens: list[int]
    seed: int

    @cached_property
    def whole(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt, *self.tokens]

    @property
    def first_root(self) -> int:
        """The position of the last token of the prompt; the first anchor follows it."""
        return len(self.request.prompt) - 1

    def until(self, length: int) -> Decoded:
        """The sequence when it had `length` tokens."""
        made = Decoded(0, self.request, self.model.limits)
        made.tokens = self.whole[len(self.request.prompt) : length]
        return made

    @cached_property
    def _blocks(self) -> dict[int, Tensor]:
        return {}

    def blocks(self, width: int) -> Tensor:
        """The final hidden states [roots, width, D] of the blocks beside AR rows, at all roots from `first_root` on."""
        if width not in self._blocks:
            self._blocks[width] = _beside_rows(self, width)
        return self._blocks[width]


def decode(model: Model, prompts: list[TaskPrompt], options: Options) -> Iterator[tuple[TaskPrompt, Text]]:
    """Decode prompts plainly, yielding each with its answer as it finishes."""
    requests = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
    for step in model.run(requests, model.decoding_config({**options, "cycle": "ar"})):
        done = step.sequence
        if done.finish_reason is not None:
            yield prompts[done.index], Text(model, done.request, list(done.tokens), done.seed)


def two_pass_drafts(text: Text, ways: Sequence[Way], nodes: int, width: int) -> dict[Way, list[Reached]]:
    """The drafts of two-pass cycles at every anchor of a text: trees of at most `nodes` nodes, or chains."""
    roots = range(text.first_root + 1, len(text.whole) - 1)
    return {
        way: [Reached.of(draft, text.whole[root + 1 :]) for root, draft in zip(roots, drafts, strict=True)]
        for way, drafts in _trees(text, ways, nodes, width).items()
    }


def _trees(text: Text, ways: Sequence[Way], nodes: int, width: int) -> dict[Way, list[DraftTree]]:
    """What the diffusion passes of two-pass cycles draft at every anchor of a text."""
    runner, whole, (table,) = text.model.runner, text.whole, _prefilled(text, len(text.whole) - 1)
    assert runner.diffusion is not None
    rows = min(width, runner.diffusion.trained_rows)
    runners = {way: runner if way.head else without_head(runner) for way in ways}
    sampler = text.until(text.first_root + 1).sampler
    found: dict[Way, list[DraftTree]] = {way: [] for way in ways}
    context = Context(whole)
    for roots in chunks(range(text.first_root + 1, len(whole) - 1), max(1, ROWS // width)):
        result = runner.diffuse_at([[(whole[root], root) for root in roots]], width, [table], rows=rows)
        for way, own in runners.items():
            temperatures, most = own.decoder.draft_temperatures()[:rows], None if way.chain else nodes
            found[way] += exact.propose([
                Proposal(
                    sampler, logits_RV, root + 1, 2 * root, temperatures, most, BlockRows.of(own, hidden_RD),
                    Lookup(context.first(root + 1), 1) if way.lookup else None,
                )
                for root, logits_RV, hidden_RD in zip(roots, result.logits, result.hidden, strict=True)
            ])  # fmt: skip
    return found


def two_pass(text: Text, drafts: Sequence[Reached], nodes: int | None, width: int) -> Statistics:
    """What two-pass cycles do with the first `nodes` nodes of these drafts (None: all)."""
    statistics = Statistics(generated=1, passes=1)
    while statistics.generated < len(text.tokens):
        offered, accepted, depth = drafts[statistics.generated - 1].first(nodes)
        plan = PassPlan(offered=offered, kind="two-pass", width=width, drafting_rows=width)
        _count(statistics, plan, accepted, depth, len(text.tokens))
    return statistics


def one_pass(text: Text, way: Way, nodes: int, candidates: int | None = None) -> Statistics:
    """What one-pass cycles do, with at most `candidates` blocks of full width each (None: one for every draft)."""
    runner = text.model.runner if way.head else without_head(text.model.runner)
    assert runner.diffusion is not None
    width = runner.diffusion.block_size
    drafting = Drafting(width, candidates, None if way.chain else nodes)
    statistics, root, plan = Statistics(generated=1, passes=1), text.first_root, PassPlan(roots=(-1,), width=width)
    while statistics.generated < len(text.tokens):
        sequence = text.until(text.first_root + 1 + statistics.generated)
        sequence.ahead = _ahead(text, runner, sequence, plan, root, drafting.nodes)
        (plan,) = one_pass_cycle.propose(runner, [sequence], drafting, exact)
        reached = Reached.of(plan.draft, text.whole[sequence.length :])
        _, accepted, depth = reached.first(None)
        chosen = plan.block_for(reached.path)
        assert chosen is not None, "the anchor has a block"
        root = sequence.length - 1 + chosen[1]
        _count(statistics, plan, accepted, depth, len(text.tokens))
    return statistics


def planned(text: Text, costs: CostModel) -> Statistics:
    """What the cycle `auto` does with the first answer of a run, by a cost table."""
    runner = text.model.runner
    assert runner.diffusion is not None
    planner = Planner(runner.diffusion, runner.diffusion.block_size, costs)
    trees: dict[int, list[DraftTree]] = {}
    statistics, sequence = Statistics(generated=1, passes=1), text.until(text.first_root + 2)
    if width := planner.first_width(text.first_root + 1):
        plan = PassPlan(roots=(-1,), width=width)
        sequence.ahead = _ahead(text, runner, sequence, plan, text.first_root, planner.nodes)
    while statistics.generated < len(text.tokens):
        planner.begin_pass([sequence])
        (plan,) = planner.plan([sequence])
        if plan.refresh:
            if plan.width not in trees:
                (trees[plan.width],) = _trees(text, [Way(chain=False, head=True)], planner.nodes, plan.width).values()
            (plan,) = planner.replan([sequence], [plan], [trees[plan.width][statistics.generated - 1]])
        anchor = sequence.length - 1
        reached = Reached.of(plan.draft, text.whole[anchor + 1 :])
        _, accepted, depth = reached.first(plan.offered)
        verdict = Verdict(text.whole[anchor + 1 : anchor + 2 + accepted], reached.path[:accepted])
        sequence.tokens += verdict.tokens
        _count(statistics, plan, accepted, depth, len(text.tokens))
        if statistics.generated == len(text.tokens):
            sequence.finish("length")
        planner.learn([sequence], [plan], [verdict])
        chosen, sequence.ahead = plan.block_for(verdict.path), DraftTree()
        if chosen is not None:
            sequence.ahead = _ahead(text, runner, sequence, plan, anchor + chosen[1], planner.nodes)
    return statistics


def every_setting(text: Text, costs: CostModel) -> Iterator[tuple[str, Statistics]]:
    """What every kind of cycle does with a text, by name: chains first, planned cycles last."""
    diffusion, has_head = text.model.runner.diffusion, text.model.decoder.draft_head is not None
    assert diffusion is not None
    ways = [Way(chain, head) for head in ([True, False] if has_head else [False]) for chain in (True, False)]
    drafts = two_pass_drafts(text, ways, max(TREES), diffusion.block_size)
    for way in ways:
        suffix = ", no head" if has_head and not way.head else ""
        for nodes in (None,) if way.chain else TREES:
            shape = f"trees of {nodes}" if nodes else "chains"
            yield f"two-pass, {shape}{suffix}", two_pass(text, drafts[way], nodes, diffusion.block_size)
        for candidates in (*CANDIDATES, None):
            shape = "chains" if way.chain else f"trees of {ONE_PASS_NODES}"
            most = "all" if candidates is None else candidates
            yield (
                f"one-pass, {shape}, {most} candidates{suffix}",
                one_pass(text, way, ONE_PASS_NODES, candidates),
            )
    yield "auto", planned(text, costs)


def speed_up(costs: CostModel, runs: Sequence[Statistics], prompts: Sequence[int]) -> float:
    """The seconds of plain passes for the same answers over those of these cycles, by a cost table. Without prefill.

    prompts: the tokens of each prompt.
    """
    contexts = [prompt + run.generated / 2 for prompt, run in zip(prompts, runs, strict=True)]
    plain = sum((run.generated - 1) * costs.ar(1, 1, own) for run, own in zip(runs, contexts, strict=True))
    return plain / sum(costs.total(run.shapes, own) for run, own in zip(runs, contexts, strict=True))


def without_head(runner: Runner) -> Runner:
    """The same runner without the draft head."""
    other, decoder = copy(runner), copy(runner.decoder)
    decoder._modules = {name: module for name, module in decoder._modules.items() if name != "draft_head"}
    decoder.draft_head = None
    other.decoder = decoder
    return other


def _count(statistics: Statistics, plan: PassPlan, accepted: int, depth: int, tokens: int) -> None:
    """Count one cycle of an answer of so many tokens, as `Sequence.append` does."""
    left = tokens - statistics.generated
    statistics.count_passes(plan)
    statistics.count_cycle(plan.kind, min(depth, accepted) if accepted == left else depth, accepted)
    statistics.generated += min(accepted + 1, left)


def _ahead(text: Text, runner: Runner, sequence: Decoded, plan: PassPlan, root: int, nodes: int | None) -> DraftTree:
    """The drafts from the block of a plan that is rooted at a position."""
    hidden_WD = text.blocks(plan.width)[root - text.first_root]
    eager = computes_eagerly(runner, plan.blocks * plan.width)
    block = Block(runner.logits(hidden_WD) if eager else hidden_WD, hidden_WD, root)
    return drafts_from_blocks(runner, [sequence], [block], exact, nodes, eager_logits=eager)[0]


def _prefilled(text: Text, length: int) -> list[BlockTable]:
    """The table of a sequence whose first `length` tokens are cached, with room for the whole text."""
    runner = text.model.runner
    (table,) = tables = runner.new_tables(1, len(text.whole))
    for chunk in chunks(text.whole[:length], runner.max_rows):
        runner.ar([chunk], tables, logit_rows=[])
        table.commit(table.length + len(chunk))
    return tables


def _beside_rows(text: Text, width: int) -> Tensor:
    """See `Text.blocks`: AR rows and blocks of the whole answer, some roots per pass."""
    runner, first, (table,) = text.model.runner, text.first_root, _prefilled(text, text.first_root)
    found = []
    for rows in chunks(text.whole[first:], max(1, ROWS // width)):
        found += runner.ar_and_diffuse([rows], [range(len(rows))], width, [table], logit_rows=[[]]).hidden
        table.commit(table.length + len(rows))
    return torch.cat(found)
