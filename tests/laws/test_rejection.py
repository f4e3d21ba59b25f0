"""Law 2: `rejection` equals the target distribution.

The test uses no statistics: whole decoding runs (prefill, drafts, verdicts, bonus, next cycle) are enumerated over a
finite grid of uniforms; one run stands for all uniforms that no comparison tells apart. The distributions are rational
with denominators that divide the grid, so the probabilities of all outcomes are exact fractions, and must equal those
of the target.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import tiny
from markov import Enumeration, MarkovRunner, inject

from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding.engine import generate
from orthrus.decoding.sequence import Limits, Request

GRID = 4
P = {0: (2, 1, 1), 1: (1, 1, 2), 2: (0, 2, 2)}
"""The next token given the last one, in quarters: all ratios p / q and residuals below are quarters too."""
DRAFTERS = {
    "good": lambda root, offset: P[root] if offset == 0 else (2, 1, 1),
    "bad": lambda root, offset: ((0, 2, 2), (2, 2, 0))[(root + offset) % 2],
    "mixed": lambda root, offset: ((1, 1, 2), (2, 2, 0), (2, 1, 1))[(root + offset) % 3],
}

HALVES = {0: (2, 2, 0), 1: (0, 2, 2), 2: (2, 0, 2)}
"""Another chain, in halves: the residual after a rejected token is a point mass."""
HALVED = {
    "good": lambda root, offset: HALVES[(root + offset) % 3],
    "bad": lambda root, offset: HALVES[(root + offset + 1) % 3],
}


class Noise:
    """The values of an enumeration. No address may be used twice."""

    def __init__(self, tree):
        self._tree, self._addresses = tree, set()

    def uniform(self, position, purpose, block=0, node=0):
        address = (position, purpose, block, node)
        assert address not in self._addresses, f"{address} was used twice"
        self._addresses.add(address)
        return self._tree.uniform(*address)


def outcomes(monkeypatch, runner, tokens, cycle, prompt=(1,), costs=None, grid=GRID):
    """All outcomes of decoding `tokens` tokens with their exact probabilities."""
    probabilities = {}
    limits, request = (
        Limits(3, 64, frozenset()),
        Request(prompt, SamplingParams(temperature=1.0), StopConditions(tokens)),
    )
    config = DecodingConfig(cycle=cycle, rule="rejection", tree_nodes=0)
    use = inject(monkeypatch)
    for tree in Enumeration(grid):
        use(Noise(tree))
        steps = list(generate(runner, [request], config, limits, costs=costs))
        key = tuple(steps[-1].sequence.tokens)
        probabilities[key] = probabilities.get(key, 0) + tree.probability
    return probabilities


@pytest.mark.parametrize("drafter", list(DRAFTERS))
@pytest.mark.parametrize(
    ("cycle", "trained_rows", "tokens"),
    [("two-pass", 1, 3), ("two-pass", 2, 2), ("one-pass", 2, 3), ("one-pass", 3, 2), ("ar", 1, 3)],
)
def test_every_outcome_has_exactly_its_target_probability(monkeypatch, drafter, cycle, trained_rows, tokens):
    check(outcomes(monkeypatch, MarkovRunner(DRAFTERS[drafter], trained_rows, P), tokens, cycle), tokens)


@pytest.mark.parametrize("costs", ["passes", "rows"])
@pytest.mark.parametrize("drafter", list(DRAFTERS))
@pytest.mark.parametrize(("trained_rows", "tokens"), [(2, 3), (3, 2)])
def test_planned_cycles_have_exactly_the_target_distribution(monkeypatch, drafter, costs, trained_rows, tokens):
    """With the planner, its probes and its refreshes."""
    runner = MarkovRunner(DRAFTERS[drafter], trained_rows, P)
    check(outcomes(monkeypatch, runner, tokens, "auto", costs=tiny.COSTS[costs]), tokens)


@pytest.mark.parametrize("costs", ["passes", "rows"])
@pytest.mark.parametrize("drafter", list(HALVED))
def test_prompt_lookup_has_exactly_the_target_distribution(monkeypatch, drafter, costs):
    """Drafts of prompt lookup have a point mass as q. All ratios and residuals are halves."""
    runner = MarkovRunner(HALVED[drafter], 2, HALVES)
    prompt = (0, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1)
    probabilities = outcomes(monkeypatch, runner, 3, "auto", prompt, tiny.COSTS[costs], grid=2)
    check(probabilities, 3, HALVES)


def check(probabilities, tokens, chain=P):
    """The probabilities of all outcomes equal those of the target exactly."""
    assert sum(probabilities.values()) == 1
    for text in itertools.product(range(3), repeat=tokens):
        expected = Fraction(1)
        for last, following in itertools.pairwise((1, *text)):
            expected *= Fraction(chain[last][following], GRID)
        assert probabilities.get(text, Fraction(0)) == expected, text
