"""Cycles, one file each. To add a cycle, add a file with `DRAFTS_AHEAD` and `propose`.

A cycle plans the next pass of every sequence; some cycles run a diffusion pass for it. Verification and commit are the
same for all cycles: see `orthrus.decoding.cycle`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from orthrus.decoding.plan import PassPlan
from orthrus.decoding.rules import Rule
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.runner.runner import Runner


class PassPlanner(Protocol):
    """Plans the passes of the cycle `auto`. `first_width`, `plan` and `replan` are queries; `begin_pass` and `learn`
    update the planner's state."""

    def first_width(self, context: int, sharers: int = 1) -> int:
        """Rows of the block in the last pass of a prefill beside sharers - 1 sequences; 0 if drafting does not pay."""
        ...

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Read the tokens that the sequences have appended since the last pass."""
        ...

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The plan of the next pass for each sequence."""
        ...

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[DraftTree]) -> list[PassPlan]:
        """The same after a refresh: `drafts` holds the new drafts of the sequences whose plan asked for one."""
        ...

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Update the acceptance estimates with the verdicts of the pass."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        ...


@dataclass(frozen=True)
class Drafting:
    """The drafting settings of a cycle. width: maximum rows of a block; candidates: maximum blocks of a one-pass cycle,
    None for no limit; nodes: maximum nodes of a tree of drafts, None for chains; planner: for the cycle `auto`."""

    width: int
    candidates: int | None = None
    nodes: int | None = None
    planner: PassPlanner | None = None


class Cycle(Protocol):
    """How a batch drafts and what it verifies."""

    DRAFTS_AHEAD: bool
    """Whether the cycle verifies drafts of an earlier pass. If so, the prefill makes the first drafts."""

    def propose(self, runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[PassPlan]:
        """The plan of each sequence's next pass, with the drafts it verifies."""
        ...


def names() -> list[str]:
    """The names of the cycles, from the files of this folder: `two_pass.py` is `two-pass`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


@cache
def load(name: str) -> Cycle:
    """The cycle with this name. Raises ValueError with the list of names if there is none."""
    if name not in names():
        raise ValueError(f"there is no cycle {name!r}; cycles: {', '.join(names())}")
    cycle: Cycle = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cycle
