"""Generated schemas: they are varied, their check finds violations, and answers of a random model match ten of them."""

from __future__ import annotations

import json

import pytest
import tiny

import orthrus
from orthrus.bench import constraints, schemas

KEYWORDS = (
    "$ref", "anyOf", "enum", "pattern", "format", "minItems", "maxItems", "minLength", "maxLength", "minimum",
)  # fmt: skip


def test_schemas_are_varied_and_the_same_every_time():
    texts = [json.dumps(schemas.generate(seed)) for seed in range(200)]
    assert texts == [json.dumps(schemas.generate(seed)) for seed in range(200)]
    assert len(set(texts)) == 200
    for keyword in KEYWORDS:
        assert sum(f'"{keyword}"' in text for text in texts) >= 20, keyword


OBJECT = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (OBJECT, {"a": None}, [{}, {"a": 1}, {"a": None, "b": 1}, []]),
        (
            {"type": "array", "items": OBJECT, "minItems": 1, "maxItems": 1},
            [{"a": None}],
            [[], [{}], [{"a": None}] * 2],
        ),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "boolean"}}}, True, [1]),
        ({"anyOf": [{"type": "null"}, OBJECT]}, None, [1, {}]),
        ({"enum": [1, None]}, 1, [True, "1"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, "ab", ["a", "abcd", 1]),
        ({"type": "string", "pattern": "^a+$"}, "aa", ["b"]),
        ({"type": "string", "format": "ipv4"}, "192.168.0.1", ["192.168.0.256", "1.2.3", "1.2.3.4."]),
        ({"type": "integer", "minimum": 1, "maximum": 2}, 1, [0, 3, 1.5, True]),
        ({"type": "number", "minimum": 1, "maximum": 2}, 1.5, [2.5, "1"]),
    ],
)
def test_violations_are_found(schema, right, wrong):
    assert list(schemas.violations(schema, right)) == []
    assert all(list(schemas.violations(schema, value)) for value in wrong)


def test_ten_schemas_are_matched_by_a_random_model(tmp_path):
    """Every draft of its answers that breaks the schema must be refused."""
    model = orthrus.load(str(tiny.save_checkpoint(tmp_path / "model")))
    options = {"cycle": "two-pass", "max_new_tokens": 400, "batch_size": 10, "temperature": 1.0, "seed": 0}
    answers = [answer for answer, _ in constraints.answers(model, range(10), options)]
    assert sorted(answer.seed for answer in answers) == list(range(10))
    complete = [answer for answer in answers if answer.finish_reason == "stop"]
    assert [answer.problems for answer in complete] == [[]] * len(complete)
    assert len(complete) == 10
