"""Law 1 with a diffusion view of NaN or inf: only acceptance falls, because no AR row reads what the view wrote."""

from __future__ import annotations

import functools

import pytest
import tiny
import torch

from orthrus.backends.native import kernels as native
from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding import cycles
from orthrus.decoding.argmax import best
from orthrus.decoding.engine import generate
from orthrus.file_cache import cache_directory
from orthrus.runner.runner import Runner

POISONS = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38}


@functools.cache
def poisoned(poison, dtype, kernels, where):
    """A runner whose diffusion view has weights that are not finite: all QKV weights, some of them, or the output
    weights of attention, so that its logits are NaN."""
    made = tiny.decoder("qwen3", dtype)
    with torch.no_grad():
        for layer in made.decoder_layers[:: 1 if where == "everywhere" else 2]:
            maps = layer.diffusion.o if where == "output" else layer.diffusion.qkv
            maps.weight[:, :: 7 if where == "in part" else 1] = POISONS[poison]
    fast = native.load(tiny.DTYPES[dtype], cache_directory()) if kernels.startswith("native") else None
    return Runner.prepare(made, fast, int8=kernels.endswith("int8"), low_precision=kernels.endswith("low precision"))


@pytest.mark.pairwise
@pytest.mark.parametrize("where", ["everywhere", "in part", "output"])
@pytest.mark.parametrize("kernels", ["native", "torch", "native int8", "torch int8", "native low precision"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("poison", list(POISONS))
def test_tokens_equal_plain_decoding(poison, dtype, kernels, where):
    runner = poisoned(poison, dtype, kernels, where)
    sampled = SamplingParams(temperature=0.7, seed=5)
    requests = [tiny.request(30, 24, 0), tiny.request(505, 16, 1, sampled), tiny.request(7, 20, 2)]
    truths = [tiny.oracle(runner, request).tokens for request in requests]
    for cycle in cycles.names():
        config = DecodingConfig(cycle=cycle, batch_size=3)
        steps = generate(runner, requests, config, tiny.LIMITS, costs=tiny.COSTS["passes"])
        done = {step.sequence.index: step.sequence.tokens for step in steps if step.sequence.finish_reason}
        assert [done[n] for n in range(3)] == truths, cycle


@pytest.mark.parametrize("cycle", ["one-pass", "two-pass", "auto"])
def test_rejection_proposes_no_drafts_from_nan_logits(cycle):
    """A draft without a finite distribution must not be proposed: a comparison with NaN would accept it."""
    runner = poisoned("nan", "fp32", "native", "output")
    request = tiny.request(30, 24, 0, SamplingParams(temperature=0.7, seed=5))
    config = DecodingConfig(cycle=cycle, rule="rejection")
    steps = list(generate(runner, [request], config, tiny.LIMITS, costs=tiny.COSTS["passes"]))
    sequence = steps[-1].sequence
    offered = sequence.statistics.drafted
    assert sum(offered) == 0 or set(sequence.statistics.cycles) == {"lookup"}
    assert len(sequence.tokens) == 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_argmax_of_a_row_does_not_depend_on_other_rows(dtype):
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -0.5], [1.0, nan, 2.0], [-1.0, -nan, -2.0], [-inf, -inf, -2.0]])
    rows = rows.to(dtype)
    rows[3, 1] = torch.copysign(torch.tensor(nan), torch.tensor(-1.0)).to(dtype)
    alone = [best(row[None])[0] for row in rows]
    assert alone[:2] == [1, 2]
    assert alone[4] == 2
    for subset in ([0, 1, 2, 3, 4], [2, 1], [3, 1], [2, 3], [4, 2, 0], [3, 0]):
        assert best(rows[subset]) == [alone[n] for n in subset]
