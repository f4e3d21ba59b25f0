"""Answers to JSON schemas: how many parse and match, and how many drafts are accepted with and without the constraint.

The same prompts are answered with the constraint and without it. Answers that reach the maximum length before the
value is complete are counted apart: a constraint allows every text that begins right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orthrus.api import Model, Options, Result, result_of
from orthrus.bench import schemas

QUESTION = "Invent an example and answer with JSON by this schema:\n"


@dataclass(frozen=True)
class Answer:
    """One answer under a constraint. problems: what it breaks of its schema, or why it does not parse."""

    seed: int
    finish_reason: str
    tokens: int
    problems: list[str]
    text: str


@dataclass(frozen=True)
class Drafting:
    """Totals over answers: accepted drafts per cycle (A), and tokens per forward pass."""

    acceptance_length: float
    tokens_per_pass: float


def answers(model: Model, seeds: range, options: Options) -> Iterator[tuple[Answer, Result]]:
    """Answer the schema of every seed under its constraint, `batch_size` at a time, and yield each as it ends."""
    engine = model.engine(**options)
    asked = {seed: schemas.generate(seed) for seed in seeds}
    indices = {}
    for seed, schema in asked.items():
        chosen: Options = {**options, "json_schema": schema}
        indices[engine.add(model.request(prompt_of(schema), chosen))] = seed
    while engine.unfinished:
        for step in engine.step():
            if step.finish_reason is not None:
                seed, result = indices[step.sequence.index], result_of(step.sequence, model.token_texts)
                problems = _problems(asked[seed], result)
                yield Answer(seed, result.finish_reason, len(result.tokens), problems, result.text), result


def prompt_of(schema: dict[str, Any]) -> str:
    """The question that asks for a value of a schema."""
    return QUESTION + json.dumps(schema)


def drafting(results: list[Result]) -> Drafting:
    """The totals over these results."""
    cycles = sum(sum(one.statistics.cycles.values()) for one in results)
    accepted = sum(sum(one.statistics.accepted) for one in results)
    passes, tokens = sum(one.statistics.passes for one in results), sum(len(one.tokens) for one in results)
    return Drafting(accepted / cycles if cycles else 0.0, tokens / passes if passes else 0.0)


def _problems(schema: dict[str, Any], result: Result) -> list[str]:
    """Empty where an answer parses and matches, or was cut at the maximum length."""
    if result.finish_reason == "length":
        return []
    try:
        return list(schemas.violations(schema, json.loads(result.text)))
    except ValueError as error:
        return [f"no JSON: {error}"]
