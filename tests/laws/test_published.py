"""Law: our loader and our cycles reproduce the logits and tokens of the published reference code.

Each folder with `expected.safetensors` in the test data, and in $ORTHRUS_FIXTURES if that is set, is one case.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from orthrus.checkpoint import hub, published
from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding.engine import generate
from orthrus.decoding.reference import autoregress
from orthrus.decoding.sequence import Limits, Request
from orthrus.runner.runner import Runner

PLACES = [
    Path(__file__).parents[1] / "data" / "published",
    *map(Path, filter(None, [os.environ.get("ORTHRUS_FIXTURES")])),
]
FOLDERS = sorted({f.name: f for p in PLACES for f in p.iterdir() if (f / "expected.safetensors").is_file()}.items())


@pytest.fixture(params=[folder for _, folder in FOLDERS], ids=[name for name, _ in FOLDERS], scope="module")
def case(request):
    runner, end = _load(request.param)
    return runner, end, load_file(request.param / "expected.safetensors")


def _load(folder):
    content = published.read_config(folder)
    runner = Runner.prepare(hub.load_decoder(str(folder), dtype=torch.float32))
    end = content.get("eos_token_id")
    return runner, frozenset([end] if isinstance(end, int) else end or [])


def test_logits_of_both_views_agree(case):
    runner, _, expected = case
    prompt, block = expected["prompt"], expected["block_ids"]
    cache = runner.new_tables()
    logits = tiny.ar(runner, prompt, cache)
    torch.testing.assert_close(logits, expected["prefill_logits"], atol=1e-4, rtol=1e-4)
    cache[0].commit(prompt.shape[1])

    assert (block[0, 1:] == runner.diffusion.mask_token_id).all()
    width = block.shape[1]
    logits = runner.diffuse([int(block[0, 0])], width, cache, rows=width)
    torch.testing.assert_close(logits, expected["diffusion_logits"], atol=1e-4, rtol=1e-4)

    logits = tiny.ar(runner, expected["verify_ids"], cache)
    torch.testing.assert_close(logits, expected["verify_logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cycle", ["two-pass", "ar"])
def test_generated_tokens_are_equal(case, cycle):
    runner, ends, expected = case
    prompt = tuple(expected["prompt"][0].tolist())
    limits = Limits(runner.config.vocab_size, runner.config.max_positions, ends)
    request = Request(prompt, SamplingParams(), StopConditions(max_new_tokens=48))
    steps = list(generate(runner, [request], DecodingConfig(cycle=cycle), limits))
    assert list(prompt) + steps[-1].sequence.tokens == expected["generated"][0].tolist()
    assert autoregress(runner, request, limits, seed=0).tokens == steps[-1].sequence.tokens
