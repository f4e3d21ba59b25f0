"""Expected speed: plain passes by the cost table, and `auto` by the acceptance in the provenance of an adapter."""

from __future__ import annotations

import pytest

from orthrus.bench import estimate
from orthrus.decoding.planning.cost_model import CostModel

FREE_ROWS = CostModel(((1, 0.01), (128, 0.01)), ((1, 0.01), (64, 0.01)), 0.0, 0.0, 0.0, 0.0)
DEAR_ROWS = CostModel(((1, 0.01), (128, 1.28)), ((1, 0.01), (64, 0.64)), 0.0, 0.0, 0.0, 0.0)


def test_acceptance_is_that_of_the_validation():
    assert estimate.by_offset({"validation": {"by_offset": [0.9, 0.5]}}) == [0.9, 0.5]
    assert estimate.by_offset({"validation": None}) == estimate.by_offset({}) == []


def test_where_rows_are_free_auto_gains_at_least_what_two_passes_do():
    found = estimate.expected(FREE_ROWS, [0.8, 0.5, 0.2])
    assert found.plain == pytest.approx(100)
    assert found.acceptance == pytest.approx(1.5)
    two_pass = (1 + 1.5) / 0.02
    assert two_pass * 0.95 < found.auto < (1 + 1.5) / 0.01
    better = estimate.expected(FREE_ROWS, [0.9, 0.8, 0.7])
    assert better.auto > found.auto
    assert found.gain == found.auto / found.plain


def test_where_rows_are_dear_or_drafts_are_bad_auto_is_plain_decoding():
    assert estimate.expected(DEAR_ROWS, [0.8, 0.5, 0.2]).gain == pytest.approx(1.0, abs=0.01)
    assert estimate.expected(FREE_ROWS, [0.01, 0.0]).gain == pytest.approx(1.0, abs=0.05)


def test_without_a_known_acceptance_only_plain_decoding_is_estimated():
    assert estimate.expected(FREE_ROWS, []) == estimate.Expected(pytest.approx(100), None, None)
