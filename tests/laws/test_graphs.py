"""CUDA graphs: a captured pass that is replayed with other integers equals the eager pass.

Without a GPU, a fake capture stands in for CUDA: its replay runs the same work again and writes to the same results.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from tree_checks import check_blocks, check_rows

from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding import cycles
from orthrus.decoding.engine import generate
from orthrus.model import families
from orthrus.runner import cuda_graphs
from orthrus.runner.cuda_graphs import CUDAGraphs


class FakeCapture:
    """A capture whose replay runs the work again, with its results in the same memory."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        results = work()
        self.captured += 1

        def replay():
            self.replayed += 1
            for old, new in zip(results, work(), strict=True):
                old.copy_(new)

        return results, replay


def capturing(family, dtype="fp32"):
    """A runner whose passes are captured, and its fake capture."""
    runner, capture = tiny.runner(family, dtype), FakeCapture()
    if not runner.attention.ragged:
        pytest.skip("this processor has no ragged attention")
    graphs = CUDAGraphs(runner.eager().executors[0], capture)
    return runner.with_executors(lambda _: graphs), capture


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_every_cycle_equals_the_oracle(family, dtype):
    runner, capture = capturing(family, dtype)
    requests = [tiny.request(5 + 90 * n, 30, n, SamplingParams(temperature=0.8 * (n % 2), seed=n)) for n in range(4)]
    truths = [tiny.oracle(tiny.runner(family, dtype), request).tokens for request in requests]
    for name in cycles.names():
        config = DecodingConfig(cycle=name, batch_size=2)
        steps = generate(runner, requests, config, tiny.LIMITS, costs=tiny.COSTS["passes"])
        tokens = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
        assert [tokens[n] for n in range(len(requests))] == truths
    assert 0 < capture.captured < capture.replayed


def test_a_replay_does_not_overwrite_earlier_results():
    runner, capture = capturing("qwen3")
    cache = runner.new_tables()
    logits = [tiny.ar(runner, torch.tensor([[token]]), cache) for token in (3, 4, 5, 3)]
    assert capture.replayed == 3
    assert torch.equal(logits[0], logits[3])
    assert not torch.equal(logits[1], logits[2])


def test_graphs_survive_growth_within_a_power_of_two_of_pages():
    runner, capture = capturing("qwen3")
    (table,) = tables = runner.new_tables()
    for length, captured in ((100, 1), (210, 1), (600, 2), (900, 2)):
        tiny.ar(runner, [tiny.request(length - table.length).prompt], tables, rows=[])
        table.commit(length)
        logits = [tiny.ar(runner, [[7]], tables) for _ in range(3)]  # eager or replayed, captured, replayed
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])
        assert capture.captured == captured


def test_long_passes_run_eagerly_and_old_graphs_are_evicted(monkeypatch):
    runner, capture = capturing("qwen3")
    tables = runner.new_tables()
    tables[0].reserve(400)
    for _ in range(3):
        tiny.ar(runner, [tiny.request(cuda_graphs.MAX_GRAPH_ROWS + 1).prompt], tables, rows=[])
    assert capture.captured == 0
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    for rows in (1, 2, 3, 1):
        for _ in range(2):
            tiny.ar(runner, torch.tensor([[5] * rows]), tables)
    assert capture.captured == 4


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_replayed_graphs_of_trees_equal_plain_decoding(dtype):
    """Trees with as many rows and paths share a graph."""
    runner, capture = capturing("qwen3", dtype)
    for seed, shape in enumerate([[-1, 0, 0, 1, 3], [-1, 0, 1, 0, 3], [-1, 0, 1, 2, 0], [-1, 0, 1, 1, 2]]):
        check_rows(runner, [30, 250], [shape, [-1, 0, 0]], seed)
        check_blocks(runner, [30, 250], [shape, [-1, 0, 0]], seed=seed)
    assert 0 < capture.captured < capture.replayed
