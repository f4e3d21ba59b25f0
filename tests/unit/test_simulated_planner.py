"""The planner at work on simulated drafts: it gains where drafts are good, and loses little where they are not."""

from __future__ import annotations

import random
from itertools import count

import pytest
import tiny

from orthrus.bench.simulated_planner import Drafts, tokens_per_second


def gain(costs, probability, batch=1, tokens=200):
    """Tokens per second over those of plain decoding."""
    drafts = Drafts([probability] * 8, miss_factor=0.5, nodes=8)
    return tokens_per_second(tiny.COSTS[costs], drafts, batch, 50, tokens) * tiny.COSTS[costs].ar(batch, 1, 50) / batch


def test_good_drafts_pay_where_rows_are_cheap():
    assert gain("passes", 0.95) > 3
    assert gain("passes", 0.95, batch=4) > 1.7
    assert gain("passes", 0.95) > gain("passes", 0.8) > gain("passes", 0.5)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("costs", list(tiny.COSTS))
def test_poor_drafts_cost_at_most_the_budget(costs, batch):
    assert gain(costs, 0.05, batch) > 0.96


@pytest.mark.parametrize("width", [2, 3])
def test_narrow_blocks_may_have_been_accepted_whole(width):
    drafts = Drafts([0.99] * width, miss_factor=0.5, nodes=8)
    assert tokens_per_second(tiny.COSTS["passes"], drafts, 1, 64, 60) > 1


def test_where_nothing_pays_decoding_stays_plain():
    assert gain("hopeless", 0.95) == pytest.approx(1, abs=0.01)


def test_drafts_are_accepted_as_often_as_their_confidence_says():
    drafts, rng = Drafts([0.7] * 4, miss_factor=0.5, nodes=8), random.Random(1)
    trees = [drafts.tree(0, 4, count()) for _ in range(2000)]
    first = sum(bool(drafts.accepted(rng, tree)) for tree in trees) / len(trees)
    roots = sum(trees[0].confidence[node] for node in trees[0].children[-1].values())
    assert first == pytest.approx(roots, abs=0.03)
