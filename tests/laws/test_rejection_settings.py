"""Law 2 with every setting: under `rejection` too, the target is the distribution after penalties, bias and filters.

Whole runs are enumerated, as in `test_rejection.py`, but by intervals: the distributions need not be rational. The
target is computed by the definitions of the settings in plain Python (`markov.target`), token by token.
"""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import tiny
import torch
from markov import Enumeration, MarkovRunner, inject, target_texts

from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.engine import generate
from orthrus.decoding.noise import AddressedNoise, Purpose
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.sequence import Limits, Request

generate_module = importlib.import_module("orthrus.decoding.engine")

CHAIN = {0: (5, 3, 1), 1: (0.4, 1.5, 1.2), 2: (1, 0, 4)}
"""Weights above and below 1, so that a repetition penalty is applied to scores of both signs."""
DRAFTER = {0: (3, 3, 2), 1: (2, 0.5, 1), 2: (2, 1, 0)}
SETTINGS = {
    "temperature": {"temperature": 0.6},
    "repetition": {"repetition_penalty": 1.7},
    "frequency and presence": {"frequency_penalty": 0.5, "presence_penalty": 0.8, "temperature": 1.2},
    "negative penalties": {"presence_penalty": -1.5, "repetition_penalty": 0.6},
    "top-k": {"top_k": 2, "temperature": 1.4},
    "top-p": {"top_p": 0.85},
    "min-p": {"min_p": 0.35},
    "bias": {"logit_bias": ((0, -math.log(2)), (1, math.log(3)))},
    "minimum": {"min_new_tokens": 2},
    "all": {
        "temperature": 1.3, "top_k": 2, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.4,
        "frequency_penalty": 0.3, "logit_bias": ((1, 0.7), (2, -0.5)), "min_new_tokens": 1,
    },
}  # fmt: skip
ENDS = {"minimum": frozenset([2]), "all": frozenset([0])}


class Run(NamedTuple):
    """A way of decoding. nodes: of trees of drafts; 0 for chains. If `costs` is an integer, it is the seed of random
    plans. head: with a draft head."""

    cycle: str
    trained_rows: int
    prompt: tuple[int, ...]
    tokens: int
    costs: CostModel | int | None = None
    nodes: int = 0
    head: bool = False

    def decode(self, monkeypatch, requests, ends=frozenset(), *, rows=0, batch=1):
        """The finished sequences, in order."""
        rows = rows or self.trained_rows
        runner = MarkovRunner(lambda root, offset: DRAFTER[(root + offset) % 3], rows, CHAIN, head=self.head)
        if isinstance(self.costs, int):
            width = runner.diffusion.block_size
            planner = tiny.RandomPlanner(self.costs, width)
            drafting = Drafting(width, nodes=self.nodes or None, planner=planner)
            monkeypatch.setattr(generate_module, "drafting_of", lambda *_: drafting)
        config = DecodingConfig(cycle=self.cycle, rule="rejection", batch_size=batch, tree_nodes=self.nodes)
        steps = generate(runner, requests, config, Limits(3, 64, ends), costs=self.costs)
        done = {step.sequence.index: step.sequence for step in steps if step.sequence.finish_reason}
        return [done[n] for n in range(len(requests))]


RUNS = {
    "ar": Run("ar", 2, (1,), 4),
    "two-pass": Run("two-pass", 2, (1,), 3),
    "one-pass": Run("one-pass", 3, (0, 2), 3),
    "planned": Run("auto", 2, (1, 2, 1), 4, tiny.COSTS["passes"]),
    "planned refresh": Run("auto", 2, (1, 2, 1), 3, replace(tiny.COSTS["passes"], block_overhead=2.0, block=1.0)),
    "looked up": Run("auto", 2, (0, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1), 4, tiny.COSTS["rows"]),
    "random plans": Run("auto", 2, (2, 1), 4, 1),
    "other random plans": Run("auto", 3, (2, 1, 0), 3, 7),
    "two-pass tree": Run("two-pass", 2, (1,), 3, nodes=3),
    "one-pass tree": Run("one-pass", 3, (0, 2), 2, nodes=3),
    "planned trees": Run("auto", 2, (1, 2, 1), 3, tiny.COSTS["passes"], nodes=3),
    "random plans of trees": Run("auto", 2, (2, 1), 3, 6, nodes=4),
    "two-pass with head": Run("two-pass", 2, (1,), 3, head=True),
    "two-pass tree with head": Run("two-pass", 2, (1,), 3, nodes=3, head=True),
    "one-pass tree with head": Run("one-pass", 3, (0, 2), 2, nodes=3, head=True),
    "random plans with head": Run("auto", 2, (2, 1), 3, 6, nodes=3, head=True),
}
KINDS = {"planned": "one-pass", "planned trees": "one-pass", "planned refresh": "two-pass", "looked up": "lookup"}
"""The kind of cycle that a run must exercise, if it is not `Run.cycle`."""


def outcomes(monkeypatch, name, params, stops=frozenset(), ends=frozenset()):
    """The probability of every text. Asserts finish reasons, and that some drafts of the run's kind are accepted."""
    run = RUNS[name]
    request = Request(run.prompt, params, StopConditions(run.tokens, stop_token_ids=stops))
    probabilities, accepted, use = {}, 0, inject(monkeypatch)
    for tree in Enumeration():
        use(tree)
        (sequence,) = run.decode(monkeypatch, [request], ends)
        assert sequence.finish_reason == ("stop" if sequence.tokens[-1] in stops | ends else "length")
        text = tuple(sequence.tokens)
        probabilities[text] = probabilities.get(text, 0) + tree.probability
        accepted += sum(sequence.statistics.accepted) * (KINDS.get(name, run.cycle) in sequence.statistics.cycles)
    assert (accepted > 0) == (name != "ar"), "the run accepts no drafts of the kind that it must exercise"
    return probabilities


def check(probabilities, run, params, ends):
    expected = target_texts(CHAIN, params, RUNS[run].prompt, RUNS[run].tokens, ends)
    assert sum(expected.values()) == pytest.approx(1)
    for text in {*expected, *probabilities}:
        assert probabilities.get(text, 0.0) == pytest.approx(expected.get(text, 0.0), abs=1e-5), text


CASES = [(settings, run) for run in RUNS for settings in (("temperature", "all") if RUNS[run].head else SETTINGS)]


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("settings", "run"), CASES)
def test_every_outcome_has_its_target_probability_with_every_setting(monkeypatch, settings, run):
    params, ends = SamplingParams(**{"temperature": 1.0, **SETTINGS[settings]}), ENDS.get(settings, frozenset())
    check(outcomes(monkeypatch, run, params, ends=ends), run, params, ends)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("run", list(RUNS))
def test_stop_tokens_of_a_request_only_cut_texts(monkeypatch, run):
    params, stops = SamplingParams(temperature=0.9, presence_penalty=0.5), frozenset([1])
    check(outcomes(monkeypatch, run, params, stops), run, params, stops)


SAMPLES = 2000


FILTERED = {
    "top-k": {"temperature": 1.4, "top_k": 2, "repetition_penalty": 1.2},
    "top-p": {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 0.4},
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("run", list(RUNS))
def test_texts_drawn_with_real_noise_have_the_target_distribution(monkeypatch, run):
    check_draws(monkeypatch, run, {"presence_penalty": 0.5}, 3)


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("looked up", "top-k"),
        ("two-pass tree with head", "top-p"),
        pytest.param("looked up", "top-p", marks=pytest.mark.full),
        pytest.param("two-pass tree with head", "top-k", marks=pytest.mark.full),
    ],
)
def test_filtered_texts_drawn_with_real_noise_have_the_target_distribution(monkeypatch, run, settings):
    check_draws(monkeypatch, run, FILTERED[settings], 4)


def check_draws(monkeypatch, run, settings, tokens):
    """Chi-square over fixed seeds: detects addresses that share a value, and values that depend on each other."""
    params, prompt = SamplingParams(**{"temperature": 0.8, **settings}), RUNS[run].prompt
    requests = [
        Request(prompt, replace(params, seed=number // 2, sample_index=number % 2), StopConditions(tokens))
        for number in range(SAMPLES)
    ]
    texts = [tuple(sequence.tokens) for sequence in RUNS[run].decode(monkeypatch, requests, batch=16)]
    expected = target_texts(CHAIN, params, prompt, tokens, frozenset())
    assert set(texts) <= set(expected)
    cells = [(texts.count(text), SAMPLES * share) for text, share in expected.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5] + ([tuple(map(sum, zip(*rare, strict=True)))] if rare else [])
    statistic = sum((observed - expected_count) ** 2 / expected_count for observed, expected_count in cells)
    freedom = torch.tensor((len(cells) - 1) / 2)
    assert float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2))) > 1e-4, statistic


def test_every_noise_address_has_a_different_value():
    """By seed, sample, position, purpose, block and node: all differ, and neighbouring addresses are uncorrelated."""
    addresses = list(itertools.product((0, 1, 2), (0, 1, 2), range(1, 13), Purpose, (0, 2, 3, 4), range(3)))
    by_address = {a: AddressedNoise(a[0], a[1]).uniform(*a[2:]) for a in addresses}
    assert all(0 <= value < 1 for value in by_address.values())
    assert len(set(by_address.values())) == len(addresses)
    values = torch.tensor([by_address[address] for address in addresses], dtype=torch.float64)
    grid = values.view(3, 3, 12, len(Purpose), 4, 3) - 0.5
    for axis in range(6):
        one, other = grid.narrow(axis, 0, grid.shape[axis] - 1), grid.narrow(axis, 1, grid.shape[axis] - 1)
        assert abs(float((one * other).mean()) * 12) < 0.15, axis


@pytest.mark.parametrize("run", [run for run in RUNS if run != "ar"])
def test_no_value_is_used_for_two_decisions(monkeypatch, run):
    """Not even for two drafts of one position, of which the first was never verified."""
    uniform, used = AddressedNoise.uniform, []

    def spied(noise, position, purpose, block=0, node=0):
        used.append((noise.seed, position, purpose, uniform(noise, position, purpose, block, node)))
        return used[-1][-1]

    monkeypatch.setattr(AddressedNoise, "uniform", spied)
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(4)]
    requests = [Request(RUNS[run].prompt, one, StopConditions(50)) for one in params]
    RUNS[run].decode(monkeypatch, requests, rows=6, batch=3)
    assert len({value for *_, value in used}) == len(used)
    drafted = [tuple(address) for *address, _ in used if address[-1] is Purpose.DRAFT]
    twice = len(drafted) - len(set(drafted))
    assert twice or run == "looked up", "no position was drafted twice, so this test checks nothing"
