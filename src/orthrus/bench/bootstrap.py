"""Ratios of sums over prompts, with 95 % bootstrap intervals: prompts are drawn with replacement.

N prompts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Counts = np.ndarray[Any, Any]
"""A count of every prompt, [N]."""
Interval = tuple[float, float]
RESAMPLES = 2000


def pooled(above: Counts, below: Counts) -> tuple[float, Interval]:
    """The ratio of the sums of two counts, and its interval."""
    ratios = _ratios(_resamples(len(above)), above, below)
    return ratio(above, below), _interval(ratios)


def paired_difference(first: tuple[Counts, Counts], second: tuple[Counts, Counts]) -> tuple[float, Interval]:
    """By how much the second ratio of sums exceeds the first, and the interval of that difference.

    first, second: numerator and denominator of each, over the same prompts. Every resample takes the same prompts for
    both, so what makes a prompt easy or hard cancels.
    """
    picks = _resamples(len(first[0]))
    differences = _ratios(picks, *second) - _ratios(picks, *first)
    return ratio(*second) - ratio(*first), _interval(differences)


def _resamples(prompts: int) -> Counts:
    return np.random.default_rng(0).integers(0, prompts, (RESAMPLES, prompts))


def ratio(above: Counts, below: Counts) -> float:
    """The ratio of the sums of two counts; 0 where nothing was counted."""
    return float(above.sum() / max(below.sum(), 1.0))


def _ratios(picks: Counts, above: Counts, below: Counts) -> Counts:
    ratios: Counts = above[picks].sum(axis=1) / np.maximum(below[picks].sum(axis=1), 1.0)
    return ratios


def _interval(values: Counts) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
