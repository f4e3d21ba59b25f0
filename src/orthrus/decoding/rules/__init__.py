"""Verification rules, one file each. A rule drafts from diffusion logits and judges drafts by AR logits.

Adding a rule is adding a file with `propose` and `verify`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.sampling import Sampler


@dataclass(frozen=True)
class Proposal:
    """Diffusion logits [R, V] of one sequence, to be drafted from; the first row is for absolute `position`.

    `block` numbers the block they are from: twice the position of its root, and one more where it shared an AR pass,
    since both kinds may be run at one root.
    """

    sampler: Sampler
    logits_RV: Tensor
    position: int
    block: int


@dataclass(frozen=True)
class Check:
    """AR logits [m + 1, V] of one sequence, after the anchor and each of its m drafts; the first draft is for
    absolute `position`."""

    sampler: Sampler
    logits_RV: Tensor
    draft: Draft
    position: int


class Rule(Protocol):
    """The two halves of a rule, each one call per pass for all sequences of the batch."""

    def propose(self, proposals: Sequence[Proposal]) -> list[Draft]:
        """Draft for each sequence one token per row, or fewer. Advances no sampler."""
        ...

    def verify(self, checks: Sequence[Check]) -> list[Verdict]:
        """Judge the drafts of each sequence, and advance its sampler by the tokens of its verdict."""
        ...


def names() -> list[str]:
    """The rules there are, by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Rule:
    """The rule of that name. Raises ValueError with the list where there is none."""
    if name not in names():
        raise ValueError(f"there is no rule {name!r}; rules: {', '.join(names())}")
    rule: Rule = importlib.import_module(f"{__name__}.{name}")
    return rule
