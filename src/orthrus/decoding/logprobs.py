"""Log-probabilities of tokens under the model's raw logits: before temperature, penalties, bias and constraints.

Each row is computed by itself, in fp32, so its bits depend neither on the cycle nor on the other rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """A token and its log probability, with those of the most likely tokens in its place, likeliest first.

    Natural logarithms of the model's own distribution: before temperature, penalties and constraints.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits_RV: Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """The log-probability of the token of each row, with the `count` likeliest tokens; the lower id first of equals."""
    return [_of_row(logits_V, token, count) for logits_V, token in zip(logits_RV, tokens, strict=True)]


def _of_row(logits_V: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs_V = logits_V.float().clone().log_softmax(dim=-1)
    top: list[tuple[int, float]] = []
    if count:
        likely = (logprobs_V >= logprobs_V.topk(min(count, len(logprobs_V))).values[-1]).nonzero()[:, 0]
        pairs = zip(likely.tolist(), logprobs_V[likely].tolist(), strict=True)
        top = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count]
    return TokenLogprobs(token, float(logprobs_V[token]), tuple(top))
