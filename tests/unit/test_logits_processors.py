"""Logit processors of the caller: the same tokens whatever the cycle, and the refusal of those that are no function."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

import orthrus


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return orthrus.load(str(tiny.save_checkpoint(tmp_path_factory.mktemp("processors") / "model")), dtype="float32")


def no_token_of_the_last_three(tokens, scores):
    scores[tokens[-3:]] = -math.inf
    return scores


def even_positions_are_even(tokens, scores):
    shift = torch.zeros_like(scores)
    shift[len(tokens) % 2 :: 2] = 3.0
    return scores + shift


BOTH = [no_token_of_the_last_three, even_positions_are_even]
PROMPT = [5, 6, 7, 8]


@pytest.mark.parametrize(("rule", "temperature"), [("exact", 0.0), ("exact", 0.8), ("rejection", 0.0)])
@pytest.mark.parametrize("cycle", ["two-pass", "one-pass", "auto"])
def test_processors_give_the_tokens_of_plain_decoding(model, cycle, temperature, rule):
    options = {"max_new_tokens": 30, "temperature": temperature, "seed": 3, "logits_processors": BOTH}
    request = model.request(PROMPT, options)
    truth = tiny.oracle(model.runner, request).tokens
    result = model.generate(PROMPT, cycle=cycle, rule=rule, **options)
    assert result.tokens == truth == model.generate(PROMPT, cycle="ar", **options).tokens
    assert result.tokens != model.generate(PROMPT, **options | {"logits_processors": None}).tokens
    context = [*PROMPT, *result.tokens]
    assert all(context[n] not in context[n - 3 : n] for n in range(len(PROMPT), len(context)))


def test_drafts_are_accepted_beside_a_processor_that_changes_little(model):
    result = model.generate(PROMPT, cycle="two-pass", max_new_tokens=30, logits_processors=lambda _, scores: scores + 1)
    assert result.tokens == model.generate(PROMPT, max_new_tokens=30).tokens
    assert sum(result.statistics.accepted) > 0


def test_processors_see_the_tokens_before_their_row_and_may_change_what_they_get(model):
    seen = []

    def spoil(tokens, scores):
        seen.append(tuple(tokens))
        tokens.clear()
        return scores.double().mul_(2)

    result = model.generate(PROMPT, cycle="two-pass", max_new_tokens=12, logits_processors=[spoil])
    context = (*PROMPT, *result.tokens)
    assert result.tokens == model.generate(PROMPT, max_new_tokens=12).tokens
    assert set(seen) >= {context[:n] for n in range(len(PROMPT), len(context))}


def test_a_constraint_holds_whatever_a_processor_prefers(model):
    def prefer_z(tokens, scores):
        scores[ord("z")] = 1e6
        return scores

    options = {"raw": True, "regex": "[ab]{5}", "max_new_tokens": 9}
    text = model.generate("hi", logits_processors=prefer_z, cycle="two-pass", **options).text
    assert len(text) == 5 and set(text) <= {"a", "b"}


class Counting:
    """Forbids a token from the given call on."""

    def __init__(self, first):
        self.calls, self.first = 0, first

    def __call__(self, tokens, scores):
        self.calls += 1
        if self.calls >= self.first:
            scores[65] += 1
        return scores


@pytest.mark.parametrize("first", [2, 3, 6, 7, 20, 21])
def test_processors_that_count_their_calls_are_refused(model, first):
    with pytest.raises(ValueError, match="must depend on these alone, not on how often they are called"):
        model.generate(PROMPT, max_new_tokens=30, logits_processors=[Counting(first)])


def test_processors_that_draw_are_refused(model):
    with pytest.raises(ValueError, match="other scores when they are called again"):
        model.generate(PROMPT, max_new_tokens=1, logits_processors=[lambda _, scores: scores + torch.rand(1)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda tokens, scores: None,
            r"logits_processors\[0\] must return a tensor of scores",
        ),
        (lambda tokens, scores: scores[:5], r"of shape \[320\], not shape \[5\]"),
        (lambda tokens, scores: scores * math.nan, "must leave a token"),
        (lambda tokens, scores: scores - math.inf, "must leave a token"),
    ],
)
def test_what_is_no_scores_is_refused(model, function, message):
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPT, max_new_tokens=3, logits_processors=[function])


@pytest.mark.parametrize("given", [5, [5], "ban"])
def test_processors_are_functions(model, given):
    with pytest.raises(ValueError, match="logits_processors must be a list of functions of the tokens before a row"):
        model.stream("hi", logits_processors=given)


def test_an_engine_goes_on_after_a_processor_that_fails(model):
    engine = model.engine(batch_size=2)
    expected = model.generate(PROMPT, max_new_tokens=20).tokens
    other = engine.add(model.request(PROMPT, {"max_new_tokens": 20}))
    with pytest.raises(ValueError, match="must depend on these alone"):
        list(model.stream(PROMPT, engine=engine, max_new_tokens=20, logits_processors=[Counting(7)]))
    *_, last = engine.follow(other)
    assert last.sequence.tokens == expected
