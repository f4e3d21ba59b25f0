"""Law 1 for random pass plans, and the guarantees of the planner."""

from __future__ import annotations

import importlib
import random

import pytest
import tiny

from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.engine import generate
from orthrus.decoding.planning import account
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.planner import Planner
from orthrus.model import families

cycle_module, generate_module = (importlib.import_module(f"orthrus.decoding.{name}") for name in ("cycle", "engine"))
auto = importlib.import_module("orthrus.decoding.cycles.auto")


@pytest.mark.parametrize("quality", [None, 0.7, 1.0])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
@pytest.mark.parametrize("seed", range(3))
def test_random_plans_equal_the_oracle(monkeypatch, family, dtype, quality, seed):
    runner, rng = tiny.runner(family, dtype), random.Random(seed)
    requests = []
    for n in range(5):
        sampling = SamplingParams(temperature=rng.choice([0.0, 0.8]), seed=n)
        stop = {"stop_token_ids": frozenset(rng.sample(range(tiny.VOCAB), rng.choice([0, 9])))}
        requests.append(tiny.request(rng.randint(1, 70), rng.randint(1, 45), n, sampling, **stop))
    truths = [tiny.oracle(runner, request) for request in requests]
    if quality is not None:
        tokens = [truth.tokens for truth in truths]
        monkeypatch.setattr(auto, "draft_pass", tiny.scripted(quality, tokens, seed))
        monkeypatch.setattr(cycle_module, "drafts_from_blocks", tiny.scripted_ahead(quality, tokens, seed))
    nodes = rng.choice([None, 3, 12, 32])
    drafting = Drafting(8, nodes=nodes, planner=tiny.RandomPlanner(seed, 8))
    monkeypatch.setattr(generate_module, "drafting_of", lambda *_: drafting)
    config = DecodingConfig(batch_size=rng.choice([1, 2, 4]), tree_nodes=nodes)
    steps = generate(runner, requests, config, tiny.LIMITS)
    done = {s.sequence.index: s.sequence for s in steps if s.sequence.finish_reason}
    for n, truth in enumerate(truths):
        assert done[n].tokens == truth.tokens
        assert done[n].finish_reason == truth.finish_reason


def decode(monkeypatch, quality, costs, new=200, **config):
    """One long answer with scripted drafts: its statistics, its modelled cost, and that of plain decoding."""
    runner, request = tiny.runner(), tiny.request(20, new, 3)
    truth = tiny.oracle(runner, request).tokens
    monkeypatch.setattr(auto, "draft_pass", tiny.scripted(quality, [truth], branches=False))
    monkeypatch.setattr(cycle_module, "drafts_from_blocks", tiny.scripted_ahead(quality, [truth], branches=False))
    steps = generate(runner, [request], DecodingConfig(**config), tiny.LIMITS, costs=costs)
    (done,) = [s.sequence for s in steps if s.sequence.finish_reason]
    assert done.tokens == truth
    context = 20 + len(truth) / 2
    return done.statistics, costs.total(done.statistics.shapes, context), (len(truth) - 1) * costs.ar(1, 1, context)


@pytest.mark.parametrize("costs", list(tiny.COSTS))
def test_wrong_drafts_cost_at_most_the_probing_budget(monkeypatch, costs):
    _, planned, plain = decode(monkeypatch, 0.0, tiny.COSTS[costs])
    assert planned <= 1.04 * plain


def test_good_drafts_are_used_by_the_cheaper_cycle(monkeypatch):
    costs = tiny.COSTS["passes"]
    statistics, planned, plain = decode(monkeypatch, 0.9, costs)
    assert planned < plain / 2.3
    assert statistics.cycles["one-pass"] > 0.5 * sum(statistics.cycles.values())
    expensive_blocks = CostModel(costs.rows, costs.drafting, 2.0, 1.0, costs.key, costs.block_key)
    statistics, planned, plain = decode(monkeypatch, 0.9, expensive_blocks)
    assert planned < plain / 1.8
    assert statistics.cycles["two-pass"] > 0.5 * sum(statistics.cycles.values())


def test_plain_passes_run_where_drafting_cannot_pay(monkeypatch):
    statistics, planned, plain = decode(monkeypatch, 0.9, tiny.COSTS["hopeless"])
    assert set(statistics.cycles) <= {"ar", "lookup"}
    assert planned <= 1.01 * plain


def test_each_sequence_of_a_batch_is_planned_by_its_own_acceptance(monkeypatch):
    runner, requests = tiny.runner(), [tiny.request(20, 120, n) for n in range(4)]
    truths, quality = [tiny.oracle(runner, request).tokens for request in requests], [0.95, 0.0, 0.95, 0.0]
    monkeypatch.setattr(auto, "draft_pass", tiny.scripted(quality, truths, branches=False))
    monkeypatch.setattr(cycle_module, "drafts_from_blocks", tiny.scripted_ahead(quality, truths, branches=False))
    monkeypatch.setattr(account, "MIN_MATCH", 100)  # the text alone drafts nothing, however it repeats itself
    steps = generate(runner, requests, DecodingConfig(batch_size=4), tiny.LIMITS, costs=tiny.COSTS["passes"])
    done = {s.sequence.index: s.sequence for s in steps if s.sequence.finish_reason}
    assert [done[n].tokens for n in range(4)] == truths
    rows = [done[n].statistics.rows / done[n].statistics.passes for n in range(4)]
    assert min(rows[0], rows[2]) > 2 * max(rows[1], rows[3])


def test_plans_depend_only_on_costs_and_history(monkeypatch):
    first, second = (decode(monkeypatch, 0.5, tiny.COSTS["rows"])[0] for _ in range(2))
    assert first.shapes == second.shapes


def test_a_policy_can_be_solved_for_every_width():
    planner = Planner(DiffusionConfig(32, 0, 32), 32, tiny.COSTS["passes"])
    assert planner.first_width(100) in range(33)
