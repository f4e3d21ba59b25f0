"""Learning-rate schedules: warm-up, then a cosine, or a stable rate with a decay at the end (WSD).

A cosine depends on the number of steps from the warm-up on, so its run cannot be made longer. WSD stays at its peak
until the decay begins, so a run that is extended goes on from there with the bits of one that was longer from the
start. Its decay is 1 less the square root of the share of it that is done, which ends at a lower loss than a linear one
(arXiv 2405.18392).
"""

from __future__ import annotations

import math

from orthrus.training.config import WSD, TrainConfig


def decay_start(config: TrainConfig) -> int | None:
    """The steps before the decay of a WSD schedule, at least 1; None for a schedule without a stable part."""
    if config.schedule != WSD:
        return None
    return max(1, config.total_steps - round(config.decay_share * config.total_steps))


def rate_at(step: int, config: TrainConfig, peak: float) -> float:
    """The learning rate of the step after `step` others: linear warm-up, then the schedule, which ends at `final_rate`
    times the peak."""
    warm = config.warmup * config.steps
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    low, start = config.final_rate, decay_start(config)
    if start is None:
        share = (step - warm) / max(config.steps - warm, 1)
        return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
    share = max(step - start, 0) / max(config.total_steps - start, 1)
    return peak * (low + (1 - low) * (1 - math.sqrt(share)))
