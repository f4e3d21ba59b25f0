"""Trees of drafts: the record, the choice of nodes, and what the planner derives from them."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import tiny
import torch

from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding.engine import Engine
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import AcceptanceHistory
from orthrus.decoding.planning.account import Account
from orthrus.decoding.planning.choice import choose_roots, count_causally, count_offered
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.planner import NOISE_SECONDS, Planner, _is_outdated, _rounded, tree_size
from orthrus.decoding.planning.policy import MAX_BLOCKS, NODES, Yield, solve
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.growth import Option, grow
from orthrus.drafters.tree import DraftTree
from orthrus.runner.draft_tree import BlockRows

TREE = DraftTree.tree([5, 6, 5, 7, 8], [-1, 0, 1, 0, -1], [0.9, 0.8, 0.5, 0.1, 0.05])


def test_a_tree_knows_its_paths_and_children():
    assert TREE.paths == [[], [5], [5, 6], [5, 6, 5], [5, 7], [8]]
    assert TREE.children == {-1: {5: 0, 8: 4}, 0: {6: 1, 7: 3}, 1: {5: 2}}
    assert (TREE.depth, TREE.is_chain, DraftTree.chain([1, 2]).is_chain, DraftTree().is_chain) == (3, False, True, True)
    assert TREE.probabilities == pytest.approx([0.9, 0.72, 0.36, 0.09, 0.05])
    assert TREE.first(2).paths == [[], [5], [5, 6]]
    assert TREE.in_order([0, 3, 4]).paths == [[], [5], [5, 7], [8]]


def test_a_part_of_a_tree_keeps_what_is_known_about_its_nodes():
    """Also from which row of its block it begins, by which its acceptance is counted."""
    q = [torch.full((9,), float(node)) for node in range(5)]
    kinds = ["agrees", "differs", "lookup", "differs", "lookup"]
    whole = replace(TREE, kinds=kinds, q=q, start=3)
    for part, nodes in ((whole.first(3), [0, 1, 2]), (whole.in_order([0, 3, 4]), [0, 3, 4])):
        assert part.start == 3
        assert part.tokens == [TREE.tokens[node] for node in nodes]
        assert part.confidence == [TREE.confidence[node] for node in nodes]
        assert part.kinds == [kinds[node] for node in nodes]
        assert all(one is q[node] for one, node in zip(part.q, nodes, strict=True))
    assert whole.grown(1, 4, 0.5, None, "lookup").start == 3


@pytest.mark.parametrize(("tokens", "parents"), [([5, 5], [-1, -1]), ([5, 6], [1, -1]), ([5], [-2])])
def test_duplicates_among_siblings_and_parents_after_their_children_are_refused(tokens, parents):
    with pytest.raises(ValueError, match="must"):
        DraftTree.tree(tokens, parents)


def test_a_grown_tree_holds_the_likeliest_paths():
    rng = random.Random(3)
    options = {path: sorted(rng.random() / 2 for _ in range(3))[::-1] for n in range(3) for path in _paths(n)}
    after = {path: [Option(token, math.log(own)) for token, own in enumerate(all_)] for path, all_ in options.items()}
    tree = grow(lambda path: after.get(tuple(path), ()), 12)
    reached = {(): 1.0}
    for path in sorted(itertools.chain(*(_paths(n) for n in (1, 2, 3))), key=len):
        reached[path] = reached[path[:-1]] * options[path[:-1]][path[-1]]
    best = sorted((path for path in reached if path), key=lambda path: -reached[path])[:12]
    assert [tuple(path) for path in tree.paths[1:]] == best


def _paths(length):
    return itertools.product(range(3), repeat=length)


def test_a_chain_holds_the_best_token_of_each_row_up_to_the_first_without_any():
    scores = torch.randn(4, tiny.VOCAB)
    scores[3] = torch.nan
    chain = BlockRows.independent().tree(scores, [0.5, 1.0, 2.0, 1.0], None)
    assert chain.tokens == scores[:3].argmax(dim=-1).tolist()
    assert chain.parents == [-1, 0, 1]
    assert chain.confidence[0] == pytest.approx(float((scores[0] / 0.5).softmax(0).max()), rel=1e-4)
    assert BlockRows.independent().after([1, 2, 3], scores[3:], 1.0).tokens == []


def test_nodes_are_verified_while_they_are_worth_their_rows():
    trees, row = [[0.9, 0.5, 0.2], [0.4, 0.3], []], lambda rows: 0.1 * rows - 0.15
    costs = [*itertools.accumulate((row(3 + n) for n in range(5)), initial=0)]
    assert count_offered(trees, lambda more: costs[: more + 1]) == [2, 1, 0]
    assert [count_causally(tree, row) for tree in trees] == [3, 2, 0]
    assert count_causally([0.9, 0.04, 0.9], row) == 1


@pytest.mark.parametrize("seed", range(20))
def test_as_many_nodes_are_verified_as_gain_most_whatever_the_shape_of_the_costs(seed):
    """Passes whose seconds rise in steps, as on a matrix unit, or at random."""
    rng = random.Random(seed)
    trees = [sorted((rng.random() for _ in range(rng.randint(0, 6))), reverse=True) for _ in range(3)]
    step, height = rng.randint(1, 5), rng.uniform(0, 2)
    costs = [height * (n // step) + rng.random() * (seed % 2) for n in range(sum(map(len, trees)) + 1)]

    def gain(counts):
        return sum(sum(tree[:count]) for tree, count in zip(trees, counts, strict=True)) - costs[sum(counts)]

    offered = count_offered(trees, lambda more: costs[: more + 1])
    assert gain(offered) == pytest.approx(max(map(gain, itertools.product(*(range(len(tree) + 1) for tree in trees)))))


def test_trees_are_as_large_as_the_rows_of_a_pass_suggest():
    drafting = ((8, 10.0), (64, 40.0))
    free = CostModel(((1, 8.0), (128, 8.1)), drafting, 1.0, 1.0, 0.0, 0.0)
    tiles = CostModel(((1, 7.0), (16, 10.0), (17, 13.0), (32, 15.0), (33, 21.0)), drafting, 1.0, 1.0, 0.0, 0.0)
    dear = CostModel(((1, 8.0), (8, 14.0), (64, 78.0)), drafting, 1.0, 1.0, 0.0, 0.0)
    assert [tree_size(costs, 8) for costs in (free, tiles, dear)] == [31, 15, 8]
    engine = Engine(tiny.runner(), DecodingConfig(), tiny.LIMITS, costs=dear, pages=64)
    assert engine._drafting.nodes == 8
    engine.use_costs(tiles)
    assert engine._drafting.nodes == 15


def test_blocks_go_to_the_likeliest_ends_while_they_pay():
    ends = [[(0.6, -1), (0.3, 0)], [(0.9, 2)]]
    assert choose_roots(ends, [2.0, 1.0], lambda blocks: 0.5 * blocks) == [[(0.6, -1), (0.3, 0)], [(0.9, 2)]]
    assert choose_roots(ends, [2.0, 1.0], lambda blocks: 0.8 * blocks) == [[(0.6, -1)], [(0.9, 2)]]
    assert choose_roots(ends, [2.0, 1.0], lambda blocks: 2.0 * blocks) == [[], []]


def test_a_yield_sums_path_probabilities_and_covers_all_ends():
    drafts = Yield.of(TREE.parents, TREE.probabilities)
    assert drafts.accepted[NODES.index(2)] == pytest.approx(0.9 + 0.72)
    assert drafts.accepted[-1] == pytest.approx(sum(TREE.probabilities))
    assert drafts.covered[0, 1:] == pytest.approx(1.0)  # nothing is verified, so the path ends at the anchor
    assert drafts.covered[NODES.index(1)].tolist() == pytest.approx([0.0, 0.9, 1.0, 1.0, 1.0])
    assert (drafts.covered[:, 1:] >= drafts.covered[:, :-1] - 1e-12).all()


def test_a_block_of_which_nothing_is_verified_counts():
    """Else the next sequence would draft in vain as often as this one did."""
    account = Account(AcceptanceHistory((8,), 8))
    drafts = DraftTree.chain([1, 2], [0.1, 0.1])
    account.observe(PassPlan(drafts, drafting_rows=8, probabilities=[0.1, 0.01]), Verdict([5], []), stopped=False)
    assert (account.history.verdicts, account.history.observed) == (1, True)
    account.observe(PassPlan(), Verdict([5], []), stopped=False)
    assert account.history.verdicts == 1


def test_drafts_that_were_seldom_accepted_are_tried_again_by_later_sequences():
    history, drafts = AcceptanceHistory((8,), 8), DraftTree.chain([1], [0.3])
    for _ in range(300):
        history.observe(drafts, [], stopped=False)
    (low,) = history.probabilities(drafts)
    assert low < 0.1
    for _ in range(6):  # in none of which such a draft is verified
        history = AcceptanceHistory((8,), 8, history)
    assert history.probabilities(drafts)[0] > 0.9 * 0.3


def test_a_batch_solves_its_policies_again_only_where_its_size_changes_much():
    assert [size for size in range(1, 200) if not _is_outdated(64, size)] == list(range(43, 96))
    assert not any(_is_outdated(size, size) or _is_outdated(_rounded(size), size) for size in range(1, 200))
    assert all(_is_outdated(0, size) for size in (1, 64))


def test_drafts_of_sampled_sequences_cost_their_noise():
    """Else text that cannot be drafted would decode slower than plainly by more than the budget."""
    costs = tiny.COSTS["rows"]
    planner = Planner(DiffusionConfig(8, tiny.MASK, 7), 8, costs)

    def sequences(*temperatures):
        requests = [tiny.request(3, 8, sampling=SamplingParams(temperature=one)) for one in temperatures]
        return [Sequence(n, request, tiny.LIMITS) for n, request in enumerate(requests)]

    assert planner._costs_of(sequences(0.0, 0.0)) is costs
    mild, hot, hottest = (planner._costs_of(sequences(0.0, temperature)) for temperature in (0.8, 1.5, 50.0))
    for more in (mild, hot, hottest):
        assert more.ar(2, 4, 10) == costs.ar(2, 4, 10)
        extra = more.diffuse(1, 8, 10) - costs.diffuse(1, 8, 10)
        assert more.ragged(1, 4, 2, 8, 10) - costs.ragged(1, 4, 2, 8, 10) == pytest.approx(extra)
    least, *_ = found = [own.diffuse(1, 8, 10) - costs.diffuse(1, 8, 10) for own in (mild, hot, hottest)]
    assert least == pytest.approx(NOISE_SECONDS * tiny.LIMITS.vocab_size)
    assert found == sorted(found) and found[-1] < 5 * least
    planner.use_costs(tiny.COSTS["passes"])
    assert planner._costs_of(sequences(0.8)).ar(1, 1, 0) == tiny.COSTS["passes"].ar(1, 1, 0)


def test_narrow_blocks_suggest_what_wider_ones_yield():
    history = AcceptanceHistory((4, 8), 8)
    draft, reached = DraftTree.chain([1, 2, 3, 4], [0.8] * 4), [0.8**depth for depth in range(1, 5)]
    for _ in range(300):
        history.observe_block("pass", 4, draft, reached)
    narrow, wide = history.yields_of("pass").split()
    assert narrow.accepted[-1] == pytest.approx(sum(reached), rel=1e-3)
    longer = [0.8**depth for depth in range(1, 9)]
    assert wide.accepted == pytest.approx(Yield.of(range(-1, 7), longer).accepted, rel=1e-3)
    assert wide.covered == pytest.approx(Yield.of(range(-1, 7), longer).covered, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", list(tiny.COSTS))
def test_the_best_rate_is_that_of_plain_decoding_or_better(name):
    costs, good = tiny.COSTS[name], Yield.of(list(range(-1, 6)), [0.9**n for n in range(1, 8)])
    nothing = Yield.of([], [])
    plain = 1 / costs.ar(1, 1, 100.0)
    assert solve(nothing, nothing, 8, costs, 1, 100.0).rate == pytest.approx(plain, rel=1e-4)
    rates = [solve(good, good, 8, costs, 1, 100.0, blocks).rate for blocks in range(MAX_BLOCKS + 1)]
    assert rates == pytest.approx(sorted(rates), rel=1e-9)
    assert (rates[-1] > 1.5 * plain) == (name == "passes")
