"""Cycles: one file each. Adding a cycle is adding a file with `DRAFTS_AHEAD` and `propose`.

A cycle plans the next pass of every sequence, and drafts first where it needs to. Verifying and committing are the same
for all cycles: see `orthrus.decoding.cycle`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from orthrus.cache import CacheWindow
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.runner.runner import Runner


class PassPlanner(Protocol):
    """Plans passes, for the cycle `auto`. Queries change nothing; `begin_pass` and `learn` bring its accounts up to
    date."""

    def first_width(self, context: int) -> int:
        """Rows of the block that a prefill drafts with; 0 where drafting does not pay."""
        ...

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Read what the sequences have appended since."""
        ...

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The next pass."""
        ...

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[Draft]) -> list[PassPlan]:
        """The next pass, given fresh `drafts` for the sequences whose plan asked for a refresh."""
        ...

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Enter the verdicts of the pass."""
        ...


@dataclass(frozen=True)
class Drafting:
    """What a cycle drafts by: rows of a block at most; blocks of a one-pass cycle at most, where they are limited; and
    the planner of `auto`."""

    width: int
    candidates: int | None = None
    planner: PassPlanner | None = None


class Cycle(Protocol):
    """How a batch drafts and what it verifies."""

    DRAFTS_AHEAD: bool
    """Whether a cycle verifies drafts that an earlier pass made; the prefill then makes the first ones."""

    def propose(
        self, runner: Runner, window: CacheWindow, batch: Seq[Sequence], drafting: Drafting, rule: Rule
    ) -> list[PassPlan]:
        """The plan of each sequence's next pass, with the drafts it verifies."""
        ...


def names() -> list[str]:
    """The cycles there are, by listing this folder: `two_pass.py` is `two-pass`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Cycle:
    """The cycle of that name. Raises ValueError with the list where there is none."""
    if name not in names():
        raise ValueError(f"there is no cycle {name!r}; cycles: {', '.join(names())}")
    cycle: Cycle = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cycle
