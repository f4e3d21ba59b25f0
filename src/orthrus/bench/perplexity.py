"""What an arithmetic costs in quality: perplexity on held-out text, and greedy answers, against float32.

The weights are those of one checkpoint. Perplexities are compared token by token, so that small differences show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor

from orthrus.api import Model, Options
from orthrus.cache import BlockTable
from orthrus.runner.runner import Runner

REFERENCE = "float32"
ARITHMETICS: dict[str, tuple[str, str | None]] = {
    REFERENCE: ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("bfloat16", "int8"),
}  # fmt: skip
"""The dtype and the quantisation of each arithmetic."""
ROWS = 128
"""Rows per pass: the logits of all of them are in memory at once."""


@dataclass(frozen=True)
class Answers:
    """One arithmetic over the windows of a text and the prompts of a task.

    losses_W: the mean negative log likelihood of the tokens of each window; answers: the tokens of each greedy answer.
    """

    losses_W: Tensor
    answers: list[list[int]]


@dataclass(frozen=True)
class Fidelity:
    """One arithmetic against float32. difference: of the mean negative log likelihood, with its standard error over
    windows. identical: answers with the same tokens; agreeing: share of the tokens before the first other one."""

    arithmetic: str
    perplexity: float
    difference: float
    standard_error: float
    answers: int
    identical: int
    agreeing: float


def measure(
    model: Model,
    windows: Sequence[list[int]],
    prompts: Sequence[Any],
    options: Options,
    track: Callable[[Iterable[list[int]]], Iterable[list[int]]],
) -> Answers:
    """Score every window from an empty cache, its first token excepted, and answer every prompt by plain decoding."""
    losses = [_loss(model.runner, window) for window in track(windows)]
    greedy: Options = options | {"cycle": "ar", "temperature": 0.0}
    answers = [result.tokens for _, result in model.results(list(prompts), **greedy)] if prompts else []
    return Answers(torch.tensor(losses, dtype=torch.float64), answers)


def compare(name: str, found: Answers, reference: Answers) -> Fidelity:
    """An arithmetic against the reference, which answered the same."""
    gap = found.losses_W - reference.losses_W
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    pairs = list(zip(found.answers, reference.answers, strict=True))
    agreeing = sum(_agreeing(*pair) for pair in pairs)
    tokens = sum(len(expected) for _, expected in pairs)
    return Fidelity(
        name, exp(float(found.losses_W.mean())), float(gap.mean()), error, len(pairs), sum(a == b for a, b in pairs),
        agreeing / tokens if tokens else 1.0,
    )  # fmt: skip


def _agreeing(found: list[int], expected: list[int]) -> int:
    """The tokens before the first that differs."""
    same = [a == b for a, b in zip(found, expected, strict=False)]
    return same.index(False) if False in same else len(same)


def windows_of(tokens: list[int], size: int, limit: int) -> list[list[int]]:
    """The first `limit` tokens in windows of `size`, without what is left over. Raises ValueError where it is no
    window."""
    windows = [tokens[start : start + size] for start in range(0, min(len(tokens), limit) - size + 1, size)]
    if not windows:
        raise ValueError(f"the text has {len(tokens)} tokens, less than a window of {size}: use a longer text")
    return windows


def _loss(runner: Runner, window: list[int]) -> float:
    """The mean negative log likelihood of the tokens of a window after its first."""
    (table,) = runner.new_tables(1, len(window))
    rows = min(ROWS, runner.max_rows)
    losses = [_losses(runner, table, window, start, rows) for start in range(0, len(window) - 1, rows)]
    return float(torch.cat(losses).mean())


def _losses(runner: Runner, table: BlockTable, window: list[int], start: int, rows: int) -> Tensor:
    given, expected = window[start : start + rows], window[start + 1 : start + 1 + rows]
    (logits_RV,) = runner.ar([given], [table])
    table.commit(start + len(given))
    targets_R1 = torch.tensor(expected, device=logits_RV.device)[:, None]
    logits_RV = logits_RV[: len(expected)].float()
    return (logits_RV.logsumexp(dim=1) - logits_RV.gather(1, targets_R1)[:, 0]).double().cpu()
