"""Law 4 for whole texts: cycles equal their replay, by chains and trees, with a draft head and without."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch

from orthrus.backends.native import kernels as native
from orthrus.bench import replay
from orthrus.bench.replay import Text, Way
from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding.engine import generate
from orthrus.file_cache import cache_directory
from orthrus.runner.runner import Runner

WAYS = [Way(chain, head) for chain in (True, False) for head in (True, False)]


@functools.cache
def text(family, dtype, temperature):
    """An answer of a tiny model with a random draft head. Another seed is another prompt."""
    decoder = tiny.decoder(family, dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in decoder.set_draft_head(32).parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator).exp() / parameter.shape[-1] ** 0.5)
    runner = Runner.prepare(decoder, native.load(tiny.DTYPES[dtype], cache_directory()), low_precision=True)
    request = tiny.request(20, 90, 1, SamplingParams(temperature=temperature, seed=9))
    model = SimpleNamespace(runner=runner, limits=tiny.LIMITS, decoder=decoder)
    return Text(model, request, tiny.oracle(runner, request).tokens, 9)


def decoded(known, way, **options):
    """What a run that gives this text counts."""
    runner = known.model.runner if way.head else replay.without_head(known.model.runner)
    *_, last = generate(runner, [known.request], DecodingConfig(**options), tiny.LIMITS)
    assert last.sequence.tokens == known.tokens
    return replace(last.sequence.statistics, seconds=0.0, prefill_seconds=0.0)


CASES = [("qwen3", "fp32", 0.0), ("llama", "bf16", 0.0), ("gemma2", "bf16", 0.3)]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_pass_cycles_equal_their_replay(case, way):
    """At several sizes, which the largest trees hold."""
    known = text(*case)
    for width in (8, 5):
        (drafts,) = replay.two_pass_drafts(known, [way], 12, width).values()
        for nodes in (None,) if way.chain else (3, 12):
            expected = decoded(known, way, cycle="two-pass", tree_nodes=nodes or 0, width=width)
            assert replay.two_pass(known, drafts, nodes, width) == expected
            assert sum(expected.accepted), "nothing is accepted, so this test checks nothing"


@pytest.mark.parametrize("candidates", [None, 1, 2])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_pass_cycles_equal_their_replay(case, way, candidates):
    known = text(*case)
    options = {"cycle": "one-pass", "candidates": candidates, "tree_nodes": 0 if way.chain else 6}
    assert replay.one_pass(known, way, 6, candidates) == decoded(known, way, **options)


@pytest.mark.parametrize("costs", [name for name in tiny.COSTS if name != "hopeless"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_planned_cycles_equal_their_replay(case, costs):
    """The planner decides by what it has seen, so one different draft would change the cycles after it."""
    known = text(*case)
    *_, last = generate(
        known.model.runner, [known.request], DecodingConfig(cycle="auto"), tiny.LIMITS, costs=tiny.COSTS[costs]
    )
    assert last.sequence.tokens == known.tokens
    expected = replace(last.sequence.statistics, seconds=0.0, prefill_seconds=0.0)
    assert replay.planned(known, tiny.COSTS[costs]) == expected
    assert set(expected.cycles) - {"ar"}, "nothing is drafted, so this test checks nothing"


def test_the_draft_head_changes_what_is_accepted():
    drafts = replay.two_pass_drafts(text(*CASES[0]), WAYS, 12, 8)
    assert drafts[Way(chain=True, head=True)] != drafts[Way(chain=True, head=False)]
    assert drafts[Way(chain=False, head=True)] != drafts[Way(chain=False, head=False)]
