"""Law 1: `exact` equals the oracle token for token, for all drafts, widths, neighbours and stop conditions."""

from __future__ import annotations

import importlib
import itertools
import random

import pytest
import tiny
import torch

from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding import cycles
from orthrus.decoding.engine import generate
from orthrus.model import families

SAMPLINGS = {
    "greedy": {},
    "sampled": {"temperature": 0.8},
    "filtered": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3, "min_new_tokens": 9},
    "biased": {"temperature": 1.0, "logit_bias": ((5, 4.0), (tiny.END, 2.0)), "repetition_penalty": 1.1},
}
AXES = {
    "family": list(tiny.CORE),
    "dtype": list(tiny.DTYPES),
    "cycle": cycles.names(),
    "sampling": list(SAMPLINGS),
    "quality": [None, 0.0, 0.6, 1.0],
    "nodes": [None, 0, 24],
    "batch": [1, 3],
    "block": [8, 32],
    "kernels": ["native", "torch", "native int8", "torch int8", "native low precision"],
    "costs": list(tiny.COSTS),
}


def product(axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def one_each(axes, names):
    """A case of each of the families `names`, with random values of the other axes (the same in every run). The slowest
    kernels, int8 in torch, are left to the other cases."""
    axes = axes | {"kernels": [name for name in axes["kernels"] if name != "torch int8"]}
    draws = {family: random.Random(family) for family in names}
    return [
        {name: rng.choice(values) for name, values in (axes | {"family": [family]}).items()}
        for family, rng in draws.items()
    ]


def pairwise(axes):
    """A small set of cases in which every pair of values of two axes occurs (greedy, deterministic)."""
    longest_first = sorted(axes, key=lambda name: -len(axes[name]))
    missing = {
        frozenset({(a, x), (b, y)}): None
        for a, b in itertools.combinations(longest_first, 2)
        for x, y in itertools.product(axes[a], axes[b])
    }
    chosen = []
    while missing:
        case = dict(next(iter(missing)))
        for name in (name for name in longest_first if name not in case):
            known = list(case.items())
            case[name] = max(axes[name], key=lambda x: sum(frozenset({(name, x), pair}) in missing for pair in known))
        chosen.append({name: case[name] for name in axes})
        for pair in itertools.combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
    return chosen


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        others = [name for name in families.names() if name not in tiny.CORE]
        if metafunc.config.getoption("--full"):
            cases = product(AXES | {"family": families.names()})
        else:
            cases = pairwise(AXES) + one_each(AXES, others)
        metafunc.parametrize("case", cases, ids=lambda case: "-".join(map(str, case.values())))


cycle_module = importlib.import_module("orthrus.decoding.cycle")


def script(monkeypatch, quality, truths):
    """Replace every source of drafts by scripted drafts of a known quality."""
    for name in ("two_pass", "auto"):
        module = importlib.import_module(f"orthrus.decoding.cycles.{name}")
        monkeypatch.setattr(module, "draft_pass", tiny.scripted(quality, truths))
    monkeypatch.setattr(cycle_module, "drafts_from_blocks", tiny.scripted_ahead(quality, truths))


def run(runner, requests, case, monkeypatch, truths):
    if case["quality"] is not None:
        script(monkeypatch, case["quality"], truths)
    nodes = None if case["cycle"] == "ar" else case["nodes"]
    config = DecodingConfig(cycle=case["cycle"], batch_size=case["batch"], tree_nodes=nodes)
    steps = generate(runner, requests, config, tiny.LIMITS, tiny.text_of, tiny.COSTS[case["costs"]])
    finished = {s.sequence.index: s.sequence for s in steps}
    return [finished[index] for index in range(len(requests))]


def test_every_cycle_equals_the_oracle(case, monkeypatch):
    runner = tiny.runner(case["family"], case["dtype"], case["block"], kernels=case["kernels"])
    assert runner.exact, "the probes found no layout whose bits hold here"
    requests = [
        tiny.request(length, new, seed, SamplingParams(seed=seed, **SAMPLINGS[case["sampling"]]), **stop)
        for seed, (length, new, stop) in enumerate(
            [
                (11, 40, {}),
                (3, 25, {"stop_token_ids": frozenset(range(0, 320, 17))}),
                (530, 12, {}),
                (40, 33, {"stop_strings": ("7 a", "3")}),
            ]
        )
    ]
    truths = [tiny.oracle(runner, request) for request in requests]
    sequences = run(runner, requests, case, monkeypatch, [truth.tokens for truth in truths])
    for sequence, truth in zip(sequences, truths, strict=True):
        assert sequence.tokens == truth.tokens
        assert sequence.finish_reason == truth.finish_reason
        assert sequence.statistics.generated == len(truth.tokens)


@pytest.mark.parametrize("kernels", ["native", "native int8"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_logits_of_verified_rows_equal_plain_decoding_bit_for_bit(family, dtype, kernels):
    runner, request = tiny.runner(family, dtype, 32, kernels=kernels), tiny.request(length=500, new=31)
    truth = tiny.oracle(runner, request, logits=True)
    cache = runner.new_tables()
    prompt = torch.tensor([request.prompt])
    tiny.ar(runner, prompt, cache, rows=[0])
    cache[0].commit(prompt.shape[1])
    rows = tiny.ar(runner, torch.tensor([truth.tokens[:-1]]), cache)[0]
    assert torch.equal(rows, truth.logits_NV[1:])


@pytest.mark.parametrize(("width", "new"), [(8, 40), (8, 44), (2, 9), (5, 31)])
def test_perfect_drafts_take_the_minimum_number_of_passes(monkeypatch, width, new):
    """One-pass: the prefill and ceil((N - 1) / (m + 1)) passes; two-pass: two passes per cycle."""
    runner, request = tiny.runner("qwen3"), tiny.request(11, new)
    truth = tiny.oracle(runner, request).tokens
    script(monkeypatch, 1.0, [truth])
    for name in ("one-pass", "two-pass"):
        config = DecodingConfig(cycle=name, width=width, tree_nodes=0)
        (done,) = [s.sequence for s in generate(runner, [request], config, tiny.LIMITS) if s.sequence.finish_reason]
        assert done.tokens == truth
        offered = min(width, 7) - (name == "one-pass")
        cycles_needed = -(-(len(truth) - 1) // (offered + 1))
        assert done.statistics.passes == 1 + cycles_needed * (2 if name == "two-pass" else 1)
