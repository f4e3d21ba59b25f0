"""Recorded passes: replayed with other numbers, they are the passes that would have been launched.

Without a GPU the recorder is one that runs the same work again, on what it kept of the first time.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding import cycles
from orthrus.decoding.engine import generate
from orthrus.model import families
from orthrus.runner import cuda_graphs
from orthrus.runner.cuda_graphs import CUDAGraphs


class Recorder:
    """Work that is run again, with its results in the same place."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        results = work()
        self.recorded += 1

        def replay():
            self.replayed += 1
            for old, new in zip(results, work(), strict=True):
                old.copy_(new)

        return results, replay


def recording(family, dtype="fp32"):
    """A runner whose passes are recorded, and its recorder."""
    runner, recorder = tiny.runner(family, dtype), Recorder()
    if not runner.attention.ragged:
        pytest.skip("this processor has no ragged attention")
    graphs = CUDAGraphs(runner.eager().executors[0], recorder)
    return runner.with_executors(lambda _: graphs), recorder


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_every_cycle_equals_the_oracle(family, dtype):
    runner, recorder = recording(family, dtype)
    asked = [tiny.request(5 + 90 * n, 30, n, SamplingParams(temperature=0.8 * (n % 2), seed=n)) for n in range(4)]
    truths = [tiny.oracle(tiny.runner(family, dtype), request).tokens for request in asked]
    for name in cycles.names():
        config = DecodingConfig(cycle=name, batch_size=2)
        steps = generate(runner, asked, config, tiny.LIMITS, costs=tiny.COSTS["passes"])
        found = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
        assert [found[n] for n in range(len(asked))] == truths
    assert 0 < recorder.recorded < recorder.replayed


def test_results_outlive_the_next_replay():
    runner, recorder = recording("qwen3")
    cache = runner.new_cache(1)
    found = [tiny.ar(runner, torch.tensor([[token]]), cache.window(0, 1)) for token in (3, 4, 5, 3)]
    assert recorder.replayed == 3
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[1], found[2])


def test_a_cache_that_has_grown_is_another_shape():
    runner, recorder = recording("qwen3")
    for length in (100, 700):
        cache = runner.new_cache(1)
        tiny.ar(runner, torch.tensor([tiny.request(length).prompt]), cache.window(0, 1), rows=[])
        cache.commit(0, length)
        found = [
            tiny.ar(runner, torch.tensor([[7]]), cache.window(0, 1)) for _ in range(3)
        ]  # launched, recorded, replayed
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    assert recorder.recorded == 2


def test_long_passes_are_launched_and_old_graphs_evicted(monkeypatch):
    runner, recorder = recording("qwen3")
    cache = runner.new_cache(1)
    cache.reserve(400)
    for _ in range(3):
        tiny.ar(
            runner, torch.tensor([tiny.request(cuda_graphs.MAX_GRAPH_ROWS + 1).prompt]), cache.window(0, 1), rows=[]
        )
    assert recorder.recorded == 0
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    for rows in (1, 2, 3, 1):
        for _ in range(2):
            tiny.ar(runner, torch.tensor([[5] * rows]), cache.window(0, 1))
    assert recorder.recorded == 4
