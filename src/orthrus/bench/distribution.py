"""The rule `rejection` against plain sampling: do the first tokens have the same distribution?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from orthrus.api import Model, Options, Prompt
from orthrus.bench.exactness import requests

PERMUTATIONS = 2000


@dataclass(frozen=True)
class Agreement:
    """A permutation test: the total variation distance of two samples, and its distribution under the null hypothesis.

    `chance` is the median and `limit` the 95 % quantile of the distance when the pooled samples are permuted;
    `p_value` is the share of permutations with a distance at least as large as observed.
    """

    what: str
    distinct: int
    distance: float
    chance: float
    limit: float
    p_value: float


def first_tokens(model: Model, prompt: Prompt, options: Options, samples: int) -> Iterator[tuple[int, ...]]:
    """The generated tokens of `samples` runs. The seeds count up from that in `options`."""
    asked = requests(model, [prompt] * samples, options)
    for step in model.run(asked, model.decoding_config(options)):
        if step.sequence.finish_reason is not None:
            yield tuple(step.sequence.tokens)


def compare(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> list[Agreement]:
    """Compare two samples at every position, and over all positions together."""
    longest = max(len(tokens) for tokens in (*one, *other))
    single = [
        _agreement(f"token {n + 1}", [t[n : n + 1] for t in one], [t[n : n + 1] for t in other]) for n in range(longest)
    ]
    return [*single, _agreement(f"tokens 1 to {longest} together", one, other)]


def _agreement(what: str, one: list[Any], other: list[Any]) -> Agreement:
    names = {value: n for n, value in enumerate(Counter([*one, *other]))}
    pooled = np.array([names[value] for value in (*one, *other)])
    observed = _distance(pooled, len(one), len(names))
    generator = np.random.default_rng(0)
    permuted = np.array([_distance(generator.permutation(pooled), len(one), len(names)) for _ in range(PERMUTATIONS)])
    middle, limit = np.quantile(permuted, (0.5, 0.95))
    share = float((permuted >= observed - 1e-12).mean())
    return Agreement(what, len(names), observed, float(middle), float(limit), share)


def _distance(values: np.ndarray[Any, Any], first: int, size: int) -> float:
    """Total variation distance between the first `first` values and the others."""
    one, other = (np.bincount(part, minlength=size) / len(part) for part in (values[:first], values[first:]))
    return float(0.5 * np.abs(one - other).sum())
