"""Time to the first token of prompts of given lengths, systems interleaved per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from orthrus.bench import exactness
from orthrus.bench.compare import Systems, quartiles
from orthrus.bench.tasks import TaskPrompt

RUNS = 3
"""Prompts of each length."""
Turn = tuple[int, int, str]
"""The tokens of a prompt, its number, and the system that reads it."""


@dataclass(frozen=True)
class FirstToken:
    """Seconds of prefill and one token, of one system with prompts of one length: the median and quartiles of `RUNS`
    prompts. runs: fewer where a peer failed."""

    prompt_tokens: int
    name: str
    runs: int
    seconds: float
    quartiles: tuple[float, float]


def measure(
    systems: Systems,
    prompts: Sequence[TaskPrompt],
    lengths: Sequence[int],
    track: Callable[[Sequence[Turn]], Iterable[Turn]],
) -> list[FirstToken]:
    """Time each system with prompts of each length, which are cut from the text of `prompts`, one after another.

    Raises ValueError where a length is beyond the context.
    """
    options = systems.options | {"max_new_tokens": 1}
    texts = exactness.requests(systems.model, [prompt.prompt for prompt in prompts], options)
    pool = [token for request in texts for token in request.prompt]
    names = systems.names
    seconds: dict[tuple[int, str], list[float]] = {}
    order = [
        (length, number, name)
        for length in lengths for number in range(RUNS)
        for name in names[number % len(names) :] + names[: number % len(names)]
    ]  # fmt: skip
    for length, number, name in track(order):
        cut = list(islice(cycle(pool), number * length, (number + 1) * length))
        (request,) = exactness.requests(systems.model, [cut], options)
        answer = systems.decode(name, request)
        if answer is not None:
            seconds.setdefault((length, name), []).append(answer[1])
    return [
        FirstToken(length, name, len(each), float(np.median(each)), quartiles(np.array(each)))
        for (length, name), each in sorted(seconds.items(), key=lambda item: (item[0][0], names.index(item[0][1])))
        if name not in systems.absent
    ]
