"""Log-probabilities have the same bits whichever cycle ran, in whatever batch, and are those of the raw logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding import cycles
from orthrus.decoding.engine import Engine
from orthrus.decoding.logprobs import TokenLogprobs, token_logprobs
from orthrus.decoding.sequence import Request, Sequence

SETTINGS = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2}}


def asked(setting="greedy", seed=0, length=11, new=24, **more):
    sampling = SamplingParams(seed=seed, **SETTINGS[setting], **more)
    return tiny.request(length=length, new=new, seed=seed, sampling=sampling)


def steps_of(runner, requests, cycle, rule="exact", pages=None):
    engine = Engine(
        runner, DecodingConfig(cycle=cycle, rule=rule, batch_size=3, row_budget=40), tiny.LIMITS,
        decode=tiny.text_of, costs=tiny.COSTS["passes"], pages=pages,
    )  # fmt: skip
    steps = {engine.add(request): [] for request in requests}
    while engine.unfinished:
        for step in engine.step():
            steps[step.sequence.index].append(step)
    return list(steps.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cycle", cycles.names())
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_each_token_has_its_log_probability_in_plain_decoding(cycle, setting, dtype):
    runner = tiny.runner(dtype=dtype)
    requests = [asked(setting, seed, logprobs=seed * 5) for seed in range(3)] + [asked(setting, 3)]
    for request, steps in zip(requests, steps_of(runner, requests, cycle), strict=True):
        truth = tiny.oracle(runner, request, logits=True)
        count = request.sampling.logprobs
        found = [one for step in steps for one in step.logprobs]
        assert found == ([] if count is None else token_logprobs(truth.logits_NV, truth.tokens, count))
        assert all(len(step.logprobs) in (0, len(step.kept.tokens)) for step in steps)


def test_they_are_the_log_softmax_and_the_likeliest_tokens():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).to(torch.bfloat16)
    (found,) = token_logprobs(logits, [3], 3)
    expected = logits[0].float().log_softmax(0).tolist()
    assert found == TokenLogprobs(3, expected[3], ((1, expected[1]), (2, expected[2]), (0, expected[0])))
    assert token_logprobs(logits, [0], 0)[0].top == ()


@pytest.mark.parametrize("cycle", ["ar", "one-pass", "auto"])
@pytest.mark.parametrize("length", [1, 11, 300])
def test_prompts_are_scored_in_chunks_beside_others(cycle, length):
    """Also if a sequence before it has the same prompt, whose pages it must not share."""
    runner = tiny.runner(dtype="bf16")
    request = asked(length=length, new=6, prompt_logprobs=2)
    requests = [replace(request, sampling=SamplingParams()), asked("sampled", 1, 40), request]
    _, _, steps = steps_of(runner, requests, cycle)
    (table,) = runner.new_tables(1, length)
    logits = torch.cat([_logits(runner, request.prompt[at : at + 8], table) for at in range(0, length, 8)])
    expected = [None, *token_logprobs(logits[:-1], request.prompt[1:], 2)]
    assert list(steps[0].prompt_logprobs) == expected
    assert all(step.prompt_logprobs == () for step in steps[1:])
    assert steps[-1].sequence.tokens == tiny.oracle(runner, request).tokens


def _logits(runner, tokens, table):
    (logits,) = runner.ar([list(tokens)], [table])
    table.commit(table.length + len(tokens))
    return logits.clone()


def test_a_preempted_prompt_is_scored_once():
    runner = tiny.runner()
    requests = [asked("sampled", 0, 200, 80), asked(seed=1, length=700, new=3, prompt_logprobs=0)]
    _, alone = steps_of(runner, requests, "two-pass")
    _, crowded = steps_of(runner, requests, "two-pass", pages=5)
    assert crowded[0].prompt_logprobs == alone[0].prompt_logprobs
    assert len(alone[0].prompt_logprobs) == 700


def test_rows_that_were_scored_before_a_preemption_are_skipped():
    """The sequence lost its pages after eight rows, and its prompt is computed again in other chunks."""
    request, logits = asked(prompt_logprobs=2), torch.randn(11, tiny.VOCAB)
    sequence = Sequence(0, request, tiny.LIMITS, tiny.text_of)
    for first, last in ((0, 8), (0, 4), (4, 11)):
        sequence.score_prompt(first, logits[first:last])
    assert sequence.prompt_logprobs == [None, *token_logprobs(logits[:-1], request.prompt[1:], 2)]


@pytest.mark.parametrize("cycle", ["ar", "one-pass"])
def test_a_prompt_may_be_scored_without_an_answer(cycle):
    request = asked(new=0, prompt_logprobs=1)
    (steps,) = steps_of(tiny.runner(), [request], cycle)
    assert [(step.kept.tokens, step.finish_reason) for step in steps] == [([], "length")]
    assert len(steps[0].prompt_logprobs) == len(request.prompt)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0, unless prompt_logprobs"):
        Request((1, 2), SamplingParams(), StopConditions(0))
