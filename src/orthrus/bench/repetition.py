"""Answers that loop: small models repeat a sentence until they are stopped, and every draft of it is accepted.

Acceptance over such answers says nothing about useful text, so benchmarks count them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_TOKENS = 4
DISTINCT_SHARE = 0.7
"""An answer of whose 4-grams of tokens a smaller share is distinct counts as a loop."""


def distinct_share(tokens: Sequence[int]) -> float:
    """The share of distinct n-grams among all n-grams of an answer; 1 for an answer that has none."""
    ngrams = [tuple(tokens[n : n + NGRAM_TOKENS]) for n in range(len(tokens) - NGRAM_TOKENS + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def loops(tokens: Sequence[int]) -> bool:
    """Whether an answer repeats itself."""
    return distinct_share(tokens) < DISTINCT_SHARE
