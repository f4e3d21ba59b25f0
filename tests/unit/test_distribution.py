"""The permutation test tells equal distributions from different ones."""

from __future__ import annotations

import numpy as np
import pytest

from orthrus.bench.distribution import compare


def draws(weights, seed, count=400):
    generator = np.random.default_rng(seed)
    return [tuple(int(v) for v in generator.choice(len(weights), 2, p=weights)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_equal_distributions_differ_by_chance_alone(seed):
    agreements = compare(draws([0.5, 0.3, 0.2], seed), draws([0.5, 0.3, 0.2], 100 + seed))
    assert [a.what for a in agreements] == ["token 1", "token 2", "tokens 1 to 2 together"]
    assert all(a.p_value > 0.001 for a in agreements)
    assert all(0 < a.chance < a.limit < 0.2 for a in agreements)


def test_a_small_bias_is_detected():
    agreements = compare(draws([0.5, 0.3, 0.2], 1, 1500), draws([0.35, 0.3, 0.35], 2, 1500))
    assert all(a.p_value < 0.001 for a in agreements)
    assert all(a.distance > a.limit for a in agreements)


def test_sequences_that_end_early_are_a_value_of_their_own():
    agreements = compare([(1, 2)] * 50, [(1,)] * 50)
    assert [a.p_value < 0.001 for a in agreements] == [False, True, True]
