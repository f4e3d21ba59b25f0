"""Figures of acceptance: answers that loop are counted apart, and two views are compared on the same prompts."""

from __future__ import annotations

import numpy as np
import pytest

from orthrus.bench import acceptance, repetition
from orthrus.bench.acceptance import Run, Setting
from orthrus.bench.bootstrap import paired_difference, pooled
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.statistics import Statistics

CHAIN = Setting(0, head=False, lookup=False, name="chain")


def run(number: int, accepted: list[int], *, part: str = "all", loops: bool = False) -> Run:
    statistics = Statistics(generated=1, passes=1)
    for kept in accepted:
        statistics.count_cycle("two-pass", 4, kept)
        statistics.passes, statistics.generated = statistics.passes + 2, statistics.generated + kept + 1
    return Run(TaskPrompt(str(number), part, "p"), CHAIN, statistics, loops)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 1.0), ([1, 2, 3], 1.0), ([1, 2, 3, 4], 1.0), ([7] * 13, 0.1), ([1, 2, 3, 4] * 4, 4 / 13)],
)
def test_the_share_of_distinct_ngrams(tokens, share):
    assert repetition.distinct_share(tokens) == pytest.approx(share)


def test_an_answer_loops_below_seven_tenths():
    repeated = [*range(10), *range(5)]  # 12 4-grams, of which two stand twice
    assert repetition.distinct_share(repeated) == pytest.approx(10 / 12)
    assert not repetition.loops(repeated)
    assert repetition.loops([*range(6), *range(6)])  # six of nine


def test_answers_that_loop_are_counted_apart():
    runs = [run(0, [1, 1]), run(1, [4, 4], loops=True), run(2, [2, 1, 0])]
    (row,) = acceptance.by_part("task", runs, [CHAIN])
    assert (row.prompts, row.loops) == (3, 1)
    assert row.acceptance_length == pytest.approx(13 / 7)
    length, (low, high) = row.without_loops
    assert length == pytest.approx(5 / 5)
    assert low <= length <= high


def test_nothing_is_said_of_other_answers_where_all_loop():
    (row,) = acceptance.by_part("task", [run(0, [4], loops=True)], [CHAIN])
    assert (row.loops, row.without_loops) == (1, None)


def test_a_paired_interval_leaves_out_what_differs_between_prompts():
    """Prompts that differ by far more than the views hide their difference, unless both are resampled together."""
    accepted, cycles = np.linspace(0.0, 40.0, 41), np.full(41, 10.0)
    better = accepted + 1.0
    difference, (low, high) = paired_difference((accepted, cycles), (better, cycles))
    assert difference == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1, 0.1))
    (_, first), (_, second) = pooled(accepted, cycles), pooled(better, cycles)
    assert first[1] > second[0], "the intervals of each alone overlap"


@pytest.mark.parametrize(
    ("shift", "conclusion"), [([1, 1, 1, 1], "second"), ([-1, -1, -1, -1], "first"), ([1, -1, 1, -1], "neither")]
)
def test_pairs_are_compared_within_each_part_and_over_all(shift, conclusion):
    lengths = [2, 3, 2, 3]
    pairs = [
        (run(n, [length] * 4, part="ab"[n % 2]), run(n, [length + more] * 4, part="ab"[n % 2]))
        for n, (length, more) in enumerate(zip(lengths, shift, strict=True))
    ]
    rows = acceptance.paired_by_part("task", pairs, [CHAIN])
    assert [row.part for row in rows] == ["a", "b", "task, all"]
    assert rows[-1].conclusion.startswith(conclusion)
    assert rows[-1].difference == pytest.approx(rows[-1].second - rows[-1].first) == pytest.approx(np.mean(shift))
