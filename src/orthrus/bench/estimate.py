"""Expected tokens per second at batch 1, from measured passes and the acceptance that an adapter was validated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.policy import Yield, solve
from orthrus.runner.runner import Runner, bytes_of

CONTEXT = 256
"""Cached tokens of the passes."""
MISS_FACTOR = 0.6
"""What a block beside AR rows is worth where its first row did not predict the bonus token, relative to a hit."""


@dataclass(frozen=True)
class Expected:
    """Tokens per second. auto: None where the acceptance is not known. acceptance: A of two-pass cycles."""

    plain: float
    auto: float | None
    acceptance: float | None

    @property
    def gain(self) -> float | None:
        """Speed of `auto` relative to plain decoding."""
        return None if self.auto is None else self.auto / self.plain


def by_offset(provenance: dict[str, Any]) -> list[float]:
    """The probability of each draft of a block to be accepted, from the validation in the provenance of an adapter;
    empty where there is none."""
    validation = provenance.get("validation")
    found = validation.get("by_offset") if isinstance(validation, dict) else None
    return [float(share) for share in found] if isinstance(found, list) else []


def expected(costs: CostModel, reached: Sequence[float], context: float = CONTEXT) -> Expected:
    """The speeds of plain decoding and of the best policy with chains of drafts; trees may be better.

    reached: see `by_offset`.
    """
    plain = 1 / costs.ar(1, 1, context)
    if not reached or not reached[0]:
        return Expected(plain, None, None)
    return Expected(plain, max(plain, *(_rate(costs, reached, w, context) for w in _widths(reached))), sum(reached))


def bytes_per_weight(runner: Runner) -> float:
    """Bytes that an AR pass reads per weight of its linear maps."""
    maps = [linear for name, linear in runner.decoder.linears().items() if ".diffusion." not in name]
    return sum(map(bytes_of, maps)) / sum(prod(linear.shape) for linear in maps)


def _widths(reached: Sequence[float]) -> range:
    return range(1, len(reached) + 1)


def _rate(costs: CostModel, reached: Sequence[float], width: int, context: float) -> float:
    """With blocks of one width. The first row of a block beside AR rows predicts the bonus token, the others are
    drafts."""
    after_hit = [share / reached[0] for share in reached[1:width]]
    beside = _chain(after_hit).towards(_chain([MISS_FACTOR * share for share in after_hit]), 1 - reached[0])
    return solve(_chain(reached[:width]), beside, width, costs, 1, context).rate


def _chain(reached: Sequence[float]) -> Yield:
    return Yield.of(list(range(-1, len(reached) - 1)), list(reached))
