"""What callers of other libraries pass: records of parameters, synonyms, schemas as classes, columns, samples."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import MISSING, fields

import numpy as np
import pydantic
import pytest
import tiny

import orthrus
from orthrus import SamplingParams
from orthrus.config import DecodingConfig, StopConditions
from orthrus.constraints import checked_schema
from orthrus.options import Options, Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return orthrus.load(str(tiny.save_checkpoint(tmp_path_factory.mktemp("arguments") / "model")), dtype="float32")


PROMPTS = ["one", "two", "three"]


def test_max_tokens_is_max_new_tokens(model):
    assert model.generate("hi", max_tokens=5).tokens == model.generate("hi", max_new_tokens=5).tokens
    with pytest.raises(ValueError, match="max_tokens and max_new_tokens are one option"):
        model.generate("hi", max_tokens=5, max_new_tokens=5)
    with pytest.raises(ValueError, match="max_tokens must be an integer, not 'x'"):
        model.stream("hi", max_tokens="x")
    assert model.generate("hi", max_tokens=None, max_new_tokens=5).statistics.generated == 5


def test_sampling_params_are_taken_and_options_go_before_them(model):
    params = SamplingParams(temperature=0.9, top_k=20, seed=5, logit_bias=((65, 1.0),))
    options = {"temperature": 0.9, "top_k": 20, "seed": 5, "logit_bias": {65: 1.0}}
    expected = model.generate("hi", max_new_tokens=9, **options).tokens
    assert model.generate("hi", params, max_new_tokens=9).tokens == expected
    assert [r.tokens for r in model.generate(["hi"], sampling_params=params, max_new_tokens=9)] == [expected]
    assert next(model.results(["hi"], params, max_new_tokens=9))[1].tokens == expected
    *_, last = model.stream("hi", params, max_new_tokens=9)
    assert last.result.tokens == expected
    *_, last = model.stream("hi", params, engine=model.engine(), max_new_tokens=9)
    assert last.result.tokens == expected
    other = model.generate("hi", max_new_tokens=9, **options | {"seed": 6}).tokens
    assert model.generate("hi", params, max_new_tokens=9, seed=6).tokens == other


def test_each_prompt_may_have_sampling_params(model):
    each = [SamplingParams(temperature=1.0, seed=n) for n in range(3)]
    together = model.generate(PROMPTS, each, max_new_tokens=8)
    alone = [model.generate(p, one, max_new_tokens=8) for p, one in zip(PROMPTS, each, strict=True)]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    with pytest.raises(ValueError, match="sampling_params has 2 entries for 3 prompts"):
        model.generate(PROMPTS, each[:2])
    for wrong in ({"temperature": 1.0}, 0.7):
        with pytest.raises(ValueError, match=r"sampling_params must be an orthrus\.SamplingParams, not "):
            model.generate("hi", wrong)


def test_a_constraint_of_sampling_params_stays_beside_other_options():
    constrained = Settings.of({"json_object": True}).sampling
    assert Settings.of({"seed": 3}, sampling_params=constrained).sampling.constraint == constrained.constraint
    assert Settings.of({"regex": "a+"}, sampling_params=constrained).sampling.constraint.kind == "regex"


class Wheel(pydantic.BaseModel):
    size: int = pydantic.Field(ge=10, le=30)


class Car(pydantic.BaseModel):
    colour: str
    wheels: list[Wheel]


class Odd(pydantic.BaseModel):
    call: type(print)
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)


def test_a_class_of_pydantic_is_a_schema():
    of_class, of_mapping = (Settings.of({"json_schema": schema}) for schema in (Car, Car.model_json_schema()))
    assert of_class == of_mapping
    assert json.loads(of_class.sampling.constraint.text)["$defs"]["Wheel"]["properties"]["size"]["minimum"] == 10
    with pytest.raises(ValueError, match=r"json_schema: .*Odd.* has no JSON schema"):
        checked_schema("json_schema", Odd)
    with pytest.raises(ValueError, match="json_schema must be a JSON schema: a mapping, JSON text, or a class"):
        checked_schema("json_schema", dict)


class Column:
    """A column of a table, as that of `datasets`: neither a list nor a tuple, and without a common base class."""

    def __init__(self, values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return iter(self._values)

    def __getitem__(self, index):
        return self._values[index]


ITERABLES = {
    "iterator": iter,
    "column": Column,
    "tuple": tuple,
    "generator": lambda values: (value for value in values),
    "keys": lambda values: dict.fromkeys(values).keys(),
    "array": lambda values: np.array(values, dtype=object),
}
MESSAGES = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


@pytest.mark.parametrize("make", ITERABLES.values(), ids=ITERABLES)
def test_any_iterable_of_prompts_is_a_list_of_them(model, make):
    expected = [result.tokens for result in model.generate(PROMPTS, max_new_tokens=4)]
    assert [result.tokens for result in model.generate(make(PROMPTS), max_new_tokens=4)] == expected
    assert [result.tokens for _, result in model.results(make(PROMPTS), max_new_tokens=4)] == expected


def test_columns_of_messages_and_of_token_ids_are_prompts(model):
    expected = [result.tokens for result in model.generate(MESSAGES, max_new_tokens=4)]
    assert [result.tokens for result in model.generate(Column(MESSAGES), max_new_tokens=4)] == expected
    assert len(model.generate(Column([[5, 6], [7]]), max_new_tokens=2)) == 2
    assert model.generate(iter(())) == []


def test_one_conversation_may_be_an_iterable_too(model):
    assert model.generate(iter(MESSAGES[0]), max_new_tokens=4).tokens == model.generate("one", max_new_tokens=4).tokens
    assert model.generate(range(5, 8), max_new_tokens=4).prompt_tokens == 3


def test_rows_of_a_dataset_are_refused_with_their_columns(model):
    rows = Column([{"prompt": "a", "answer": "b"}])
    for call in (model.generate, model.results):
        with pytest.raises(ValueError, match=re.escape("rows['prompt'] (columns: prompt, answer)")):
            call(rows)


def test_n_gives_samples_in_the_place_of_each_result(model):
    options = {"max_new_tokens": 8, "temperature": 1.2, "seed": 7}
    samples = model.generate("hi", n=3, **options)
    alone = [model.generate("hi", sample_index=index, **options) for index in range(3)]
    assert [s.tokens for s in samples] == [s.tokens for s in alone]
    assert [s.sample_index for s in samples] == [0, 1, 2]
    assert len({tuple(s.tokens) for s in samples}) == 3
    nested = model.generate(["hi", "ho"], n=3, **options)
    assert [len(group) for group in nested] == [3, 3]
    assert [s.tokens for s in nested[0]] == [s.tokens for s in samples]
    indexed = list(model.results(["hi", "ho"], n=3, batch_size=2, **options))
    assert [index for index, _ in indexed] == [0, 1]
    assert [s.tokens for _, group in indexed for s in group] == [s.tokens for group in nested for s in group]
    assert samples[2].to_dict()["sample_index"] == 2


def test_samples_without_a_seed_share_the_one_that_is_drawn(model):
    first, second = model.generate("hi", n=2, temperature=1.5, max_new_tokens=8)
    assert first.seed == second.seed
    again = model.generate("hi", temperature=1.5, max_new_tokens=8, seed=second.seed, sample_index=1)
    assert again.tokens == second.tokens
    assert len(model.generate("hi", n=1, max_new_tokens=2)) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_n_is_a_number_of_samples(model, n):
    with pytest.raises(ValueError, match="n must be a number of samples, at least 1, not "):
        model.generate("hi", n=n)


def test_a_stream_has_one_answer(model):
    with pytest.raises(ValueError, match="unknown option 'n'; it is an argument of generate and results"):
        model.stream("hi", n=2)


def test_log_probabilities_carry_text(model):
    result = model.generate("hi", raw=True, max_new_tokens=6, logprobs=2, prompt_logprobs=1)
    assert [one.text for one in result.prompt_logprobs[1:]] == ["i"]
    for scored, token in zip(result.logprobs, result.tokens, strict=True):
        assert scored.token == token
        assert [scored.text, *(top.text for top in scored.top)] == [
            model.token_texts.text(t) for t in (token, *(top.token for top in scored.top))
        ]
    assert model.token_texts.text(tiny.END) == "<|end|>"
    assert any(scored.text == model.decode([scored.token]) != "" for scored in result.logprobs)
    (record, *_) = json.loads(json.dumps(result.to_dict()))["logprobs"]
    assert set(record) == {"token", "text", "logprob", "top"}
    assert [set(top) for top in record["top"]] == [{"token", "text", "logprob"}] * 2


DESCRIBED = re.compile(r"^ {8}(\w+)(?:, (\w+))?: (\S.*?) = (\S+?)(?: in ([\[(])(\S+), (\S+)([\])]))?\. \S.*\.$")


def described():
    """name: (default, lower end, upper end) of each option in the help of `generate`."""
    (_, options) = inspect.getdoc(orthrus.Model.generate).split("Options (None for one is its default):\n")
    for line in options.splitlines():
        name, synonym, _, default, opening, low, high, _ = DESCRIBED.fullmatch("    " + line).groups()
        default = eval(default)
        ends = (opening, float(low), float(high)) if opening else None
        yield from ((each, default, ends) for each in (name, synonym) if each)


def test_the_help_of_generate_lists_every_option_with_its_default():
    listed = {name: default for name, default, _ in described()}
    assert set(listed) == set(Options.__annotations__)
    records = [field for record in (SamplingParams, StopConditions, DecodingConfig) for field in fields(record)]
    known = {field.name: field.default for field in records if field.default is not MISSING}
    known |= {"batch_size": None, "max_tokens": StopConditions.max_new_tokens}
    assert {name: known[name] for name in listed if name in known} == {
        name: default for name, default in listed.items() if name in known
    }


NEEDS = {
    "candidates": {"cycle": "one-pass"},
    "max_new_tokens": {"prompt_logprobs": 0},
    "max_tokens": {"prompt_logprobs": 0},
}


@pytest.mark.parametrize("name", sorted({name for name, _, ends in described() if ends}))
def test_the_help_of_generate_gives_the_range_of_numbers(name):
    opening, low, high = next(ends for each, _, ends in described() if each == name)
    kind = float if "float" in str(Options.__annotations__[name]) else int

    def accepts(value):
        try:
            Settings.of({name: kind(value), **NEEDS.get(name, {})})
        except ValueError:
            return False
        return True

    step = 1e-3 if kind is float else 1
    assert accepts(low) == (opening == "[")
    assert accepts(low + step)
    assert not accepts(low - step)
    if math.isfinite(high):
        top = int(high) - (high > 2**53) if kind is int else high  # 2^64 - 1 is no float
        assert accepts(top)
        assert not accepts(top + step)
