"""What an arithmetic costs in quality: perplexity on held-out text, and greedy answers, against float32.

The weights are those of one checkpoint. Perplexities are compared token by token and answers prompt by prompt, so that
small differences show. Intervals are of 95 %, by bootstrap over windows or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import comb, exp

import numpy as np
import torch
from torch import Tensor

from orthrus.api import Model, Options
from orthrus.bench import bootstrap, quality
from orthrus.bench.tasks import TaskPrompt
from orthrus.cache import BlockTable
from orthrus.runner.runner import Runner

REFERENCE = "float32"
ARITHMETICS: dict[str, tuple[str, str]] = {
    REFERENCE: ("float32", "none"), "bfloat16": ("bfloat16", "none"), "int8": ("bfloat16", "int8"),
}  # fmt: skip
"""The dtype and the quantisation of each arithmetic."""
ROWS = 128
"""Rows per pass: the logits of all of them are in memory at once."""


@dataclass(frozen=True)
class Answers:
    """One arithmetic over the windows of a text and the prompts of a task.

    losses_W: the mean negative log likelihood of the tokens of each window; answers: the tokens of each greedy answer;
    right: whether each answer is right, empty where that was not asked.
    """

    losses_W: Tensor
    answers: list[list[int]]
    right: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Verdicts:
    """Right answers of one arithmetic beside those of float32 to the same prompts.

    lost, gained: answers right in float32 alone, and in this arithmetic alone. p: of the exact test of McNemar, that
    chance divides them as unequally. interval: of the difference of the shares of right answers.
    """

    right: int
    lost: int
    gained: int
    p: float
    interval: bootstrap.Interval


@dataclass(frozen=True)
class Fidelity:
    """One arithmetic against float32. difference: of the mean negative log likelihood, with its standard error over
    windows and its interval. identical: answers with the same tokens; agreeing: share of the tokens before the first
    other one; verdicts: None where the answers were not checked."""

    arithmetic: str
    perplexity: float
    difference: float
    standard_error: float
    interval: bootstrap.Interval
    answers: int
    identical: int
    agreeing: float
    verdicts: Verdicts | None


def measure(
    model: Model,
    windows: Sequence[list[int]],
    prompts: Sequence[TaskPrompt],
    options: Options,
    track: Callable[[Iterable[list[int]]], Iterable[list[int]]],
    *,
    check: bool = False,
) -> Answers:
    """Score every window from an empty cache, its first token excepted, and answer every prompt by plain decoding.

    check: whether each answer is right is found out too, which runs the code of answers to tasks of code.
    """
    losses = [_loss(model.runner, window) for window in track(windows)]
    greedy: Options = options | {"cycle": "ar", "temperature": 0.0}
    results = [result for _, result in model.results([p.prompt for p in prompts], **greedy)] if prompts else []
    right = [quality.right(*pair) for pair in zip(prompts, [r.text for r in results], strict=True)] if check else []
    return Answers(torch.tensor(losses, dtype=torch.float64), [result.tokens for result in results], right)


def compare(name: str, found: Answers, reference: Answers) -> Fidelity:
    """An arithmetic against the reference, which answered the same."""
    gap = found.losses_W - reference.losses_W
    error = float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else 0.0
    _, interval = bootstrap.pooled(gap.numpy(), np.ones(len(gap)))
    pairs = list(zip(found.answers, reference.answers, strict=True))
    agreeing = sum(_agreeing(*pair) for pair in pairs)
    tokens = sum(len(expected) for _, expected in pairs)
    return Fidelity(
        name, exp(float(found.losses_W.mean())), float(gap.mean()), error, interval, len(pairs),
        sum(a == b for a, b in pairs), agreeing / tokens if tokens else 1.0,
        _verdicts(np.array(found.right), np.array(reference.right)) if found.right else None,
    )  # fmt: skip


def _verdicts(found: bootstrap.Counts, reference: bootstrap.Counts) -> Verdicts:
    """Both [N], of the same N prompts."""
    lost, gained = int((reference & ~found).sum()), int((found & ~reference).sum())
    ones = np.ones(len(found))
    _, interval = bootstrap.paired_difference((reference.astype(float), ones), (found.astype(float), ones))
    return Verdicts(int(found.sum()), lost, gained, _mcnemar(lost, gained), interval)


def _mcnemar(lost: int, gained: int) -> float:
    """The two-sided p-value of the exact test: each of the answers that differ is lost or gained by a fair coin."""
    changed = lost + gained
    tail = sum(comb(changed, count) for count in range(min(lost, gained) + 1))
    return min(1.0, 2.0 * tail / 2.0**changed)


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
