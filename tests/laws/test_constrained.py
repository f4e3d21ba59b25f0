"""Constraints change what plain decoding gives, and nothing else: every cycle, rule and draft gives the same tokens,
and the text matches. `rejection` under a constraint equals the constrained target distribution."""

from __future__ import annotations

import json
import re

import pytest
import tiny
from markov import Enumeration, inject
from test_rejection_settings import CHAIN, RUNS

from orthrus.config import Constraint, DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding import cycles
from orthrus.decoding.constraints import Grammars
from orthrus.decoding.engine import generate
from orthrus.decoding.json_digits import MAX_DIGITS
from orthrus.decoding.reference import autoregress
from orthrus.decoding.sequence import Limits, Request

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "s": {"type": "string", "maxLength": 6},
        "l": {"type": "array", "items": {"enum": ["aa", "ab", "b"]}, "maxItems": 3},
    },
    "required": ["n", "s"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "schema": Constraint("json_schema", json.dumps(SCHEMA)),
    "regex": Constraint("regex", r"[a-f]{3,20}(-[0-9]{2,9})?"),
    "grammar": Constraint("grammar", 'start: ("a" | "bc" | "[" start "]")+ "!"?'),
    "object": Constraint("json_object"),
}
SETTINGS = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "filtered": {"temperature": 1.2, "top_k": 12, "top_p": 0.9},
    "penalised": {"repetition_penalty": 1.3, "min_new_tokens": 9, "logit_bias": ((64, 2.0),)},
}
LENGTH = 40


@pytest.fixture(scope="module")
def limits():
    grammars = Grammars(tiny.tokenizer().backend_tokenizer.to_str, tiny.VOCAB, tiny.LIMITS.end_token_ids)
    return Limits(tiny.VOCAB, 2048, tiny.LIMITS.end_token_ids, grammars)


def request(constraint, setting, seed=0):
    sampling = SamplingParams(seed=seed, constraint=CONSTRAINTS.get(constraint), **SETTINGS[setting])
    return tiny.request(new=LENGTH, seed=seed, sampling=sampling)


def decode(runner, requests, limits, cycle, rule="exact"):
    config = DecodingConfig(cycle=cycle, rule=rule, batch_size=3)
    ended = {}
    for step in generate(runner, requests, config, limits, tiny.text_of, tiny.COSTS["passes"]):
        if step.finish_reason is not None:
            ended[step.sequence.index] = (step.sequence.tokens, step.finish_reason)
    return [ended[n] for n in range(len(requests))]


def oracle(runner, asked, limits):
    result = autoregress(runner, asked, limits, asked.sampling.seed, tiny.text_of)
    return result.tokens, result.finish_reason


def text_of(tokens):
    return tiny.tokenizer().decode(tokens, skip_special_tokens=True)


def check_text(constraint, tokens, reason):
    """The text matches where the answer is complete, and has the full length where it is not."""
    if reason == "length":
        assert len(tokens) == LENGTH
    elif constraint == "regex":
        assert re.fullmatch(CONSTRAINTS["regex"].text, text_of(tokens))
    elif constraint == "schema":
        answer = json.loads(text_of(tokens))
        assert 0 <= answer["n"] <= 99
        assert len(answer["s"]) <= 6
    elif constraint == "object":
        assert isinstance(json.loads(text_of(tokens)), dict)


@pytest.mark.parametrize("cycle", cycles.names())
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_every_cycle_gives_the_tokens_of_the_constrained_oracle(limits, cycle, setting):
    """Beside neighbours that end earlier or later, and one without a constraint."""
    runner, names = tiny.runner(), [*CONSTRAINTS, None]
    asked = [request(name, setting, seed) for seed, name in enumerate(names)]
    expected = [oracle(runner, one, limits) for one in asked]
    assert decode(runner, asked, limits, cycle) == expected
    for name, (tokens, reason) in zip(names, expected, strict=True):
        check_text(name, tokens, reason)
    assert {expected[0][1], expected[1][1]} == {"stop"}, "both constraints must be completed"


@pytest.mark.parametrize("cycle", cycles.names())
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_end_in_every_cycle(limits, cycle, temperature):
    """Digits are so likely that only the bound on them ends a number; drafts run across it."""
    schema = {"type": "object", "properties": {"x": {"type": "number"}, "s": {"type": "string", "maxLength": 3}}}
    bias = tuple((tiny.tokenizer().convert_tokens_to_ids(digit), 40.0) for digit in "0123456789")
    constraint = Constraint("json_schema", json.dumps({**schema, "required": ["x"], "additionalProperties": False}))
    sampling = SamplingParams(seed=5, temperature=temperature, logit_bias=bias, constraint=constraint)
    runner, asked = tiny.runner(), [tiny.request(new=160, seed=seed, sampling=sampling) for seed in range(3)]
    expected = [oracle(runner, one, limits) for one in asked]
    assert decode(runner, asked, limits, cycle) == expected
    for tokens, reason in expected:
        assert reason == "stop"
        assert max(map(len, re.findall("[0-9]+", text_of(tokens)))) == MAX_DIGITS
        assert isinstance(json.loads(text_of(tokens))["x"], int | float)


@pytest.mark.parametrize("cycle", cycles.names())
@pytest.mark.parametrize("bias", [-100.0, -1000.0])
def test_tokens_that_a_bias_makes_impossible_are_no_drafts(limits, cycle, bias):
    """Their probability is 0 in float32, and they are all that the constraint allows beside one token."""
    (unlikely,) = tiny.tokenizer()("b", add_special_tokens=False)["input_ids"]
    sampling = SamplingParams(logit_bias=((unlikely, bias),), constraint=Constraint("regex", "[ab]{20}"))
    runner, asked = tiny.runner(), [tiny.request(new=30, seed=seed, sampling=sampling) for seed in range(2)]
    expected = [oracle(runner, one, limits) for one in asked]
    assert decode(runner, asked, limits, cycle) == expected
    assert expected[0] == (tiny.tokenizer()("a", add_special_tokens=False)["input_ids"] * 20, "stop")


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass"])
@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("setting", ["greedy", "sampled"])
def test_drafts_that_break_the_grammar_change_nothing(monkeypatch, limits, cycle, quality, setting):
    """Scripted drafts are off by one token where they are wrong, which no constraint here allows, and go on past the
    end of the answer."""
    runner, names = tiny.runner(), list(CONSTRAINTS)
    asked = [request(name, setting, seed) for seed, name in enumerate(names)]
    expected = [oracle(runner, one, limits) for one in asked]
    truth = [tokens for tokens, _ in expected]
    monkeypatch.setattr("orthrus.decoding.cycles.two_pass.draft_pass", tiny.scripted(quality, truth))
    monkeypatch.setattr("orthrus.decoding.cycle.drafts_from_blocks", tiny.scripted_ahead(quality, truth))
    assert decode(runner, asked, limits, cycle) == expected
    if setting == "sampled":  # the drafts are point masses: the tokens may differ from those of `exact`
        for name, (tokens, reason) in zip(names, decode(runner, asked, limits, cycle, "rejection"), strict=True):
            check_text(name, tokens, reason)


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass", "auto"])
def test_rejection_keeps_to_the_grammar(limits, cycle):
    runner, names = tiny.runner(), list(CONSTRAINTS)
    for setting in ("sampled", "filtered"):
        asked = [request(name, setting, seed) for seed, name in enumerate(names)]
        for name, (tokens, reason) in zip(names, decode(runner, asked, limits, cycle, "rejection"), strict=True):
            check_text(name, tokens, reason)


LANGUAGE = ("a", "ab", "abba", "bb", "bab", "aaa")
"""Over the tokens 0 and 1, which are `a` and `b`; token 2 ends a text."""


@pytest.fixture(scope="module")
def letters():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Limits(3, 64, frozenset([2]), Grammars(made.to_str, 3, frozenset([2])))


def target(prompt, tokens):
    """The probability of every text of at most `tokens` tokens, by the definition of the constraint."""
    ended, open_texts = {}, {(): 1.0}
    while open_texts:
        following = {}
        for text, probability in open_texts.items():
            written = "".join("ab"[token] for token in text)
            allowed = [t for t in (0, 1) if any(word.startswith(written + "ab"[t]) for word in LANGUAGE)]
            if not allowed or len(text) == tokens:
                ended[text] = probability
                continue
            allowed += [2] * (written in LANGUAGE)
            weights = {token: CHAIN[(*prompt, *text)[-1]][token] for token in allowed}
            for token, weight in weights.items():
                texts = ended if token == 2 else following
                texts[(*text, token)] = probability * weight / sum(weights.values())
        open_texts = following
    return ended


@pytest.mark.parametrize(
    "run",
    [
        "ar", "two-pass", "one-pass", "planned", "planned refresh", "looked up", "random plans", "two-pass tree",
        "one-pass tree", "planned trees",
    ],
)  # fmt: skip
def test_rejection_has_exactly_the_constrained_distribution(monkeypatch, letters, run):
    monkeypatch.setattr("test_rejection_settings.Limits", lambda *_: letters)
    params = SamplingParams(temperature=1.0, constraint=Constraint("regex", "|".join(LANGUAGE)))
    chosen, probabilities, accepted, use = RUNS[run], {}, 0, inject(monkeypatch)
    asked = Request(chosen.prompt, params, StopConditions(chosen.tokens))
    for tree in Enumeration():
        use(tree)
        (sequence,) = chosen.decode(monkeypatch, [asked])
        text = tuple(sequence.tokens)
        probabilities[text] = probabilities.get(text, 0) + tree.probability
        accepted += sum(sequence.statistics.accepted)
    expected = {text: share for text, share in target(chosen.prompt, chosen.tokens).items() if share}
    assert probabilities == pytest.approx(expected, abs=1e-5)
    assert (accepted > 0) == (run != "ar")
