"""Verification rules, one file each. A rule draws drafts from diffusion logits and verifies them with AR logits.

To add a rule, add a file with `DRAWS`, `propose` and `verify`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from torch import Tensor

from orthrus import gumbel
from orthrus.decoding.sampling import Sampler
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.gumbel import SamplingKernels
from orthrus.ngrams import Lookup
from orthrus.runner.draft_tree import BlockRows


@dataclass(frozen=True)
class Proposal:
    """Diffusion logits [R, V] of one sequence, from which tokens are drafted; the first row is for absolute `position`.

    `block` identifies the draft block in the address of its noise: 2 * root position for a block of a diffusion pass,
    2 * root position + 1 for a block that shared an AR pass, because both may exist at one root. temperatures_R: those
    that calibrate the rows. nodes: the most nodes of the tree; None for a chain. rows: chooses drafts by their scores.
    lookup: the text up to the token before `position`, whose repetitions tell what may follow.
    """

    sampler: Sampler
    logits_RV: Tensor
    position: int
    block: int
    temperatures_R: Sequence[float]
    nodes: int | None = None
    rows: BlockRows = field(default_factory=BlockRows.independent)
    lookup: Lookup | None = None


@dataclass(frozen=True)
class Check:
    """AR logits [m + 1, V] of one sequence, after the anchor and each of the m nodes of its draft; a child of the
    anchor is for absolute `position`."""

    sampler: Sampler
    logits_RV: Tensor
    draft: DraftTree
    position: int
    kernels: SamplingKernels = gumbel


class Rule(Protocol):
    """A rule: two functions and a constant. Each function is called once per pass, for all sequences of the batch.

    DRAWS: whether drafts are drawn, so that their distributions decide which tokens follow.
    """

    DRAWS: bool

    def propose(self, proposals: Sequence[Proposal]) -> list[DraftTree]:
        """Draft a tree of at most `nodes` nodes for each sequence. Advances no sampler."""
        ...

    def verify(self, checks: Sequence[Check]) -> list[Verdict]:
        """Walk down the tree of each sequence, and advance its sampler by the tokens of its verdict."""
        ...


def names() -> list[str]:
    """The names of the rules, from the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def load(name: str) -> Rule:
    """The rule with this name. Raises ValueError with the list of names if there is none."""
    if name not in names():
        raise ValueError(f"there is no rule {name!r}; rules: {', '.join(names())}")
    rule: Rule = importlib.import_module(f"{__name__}.{name}")
    return rule
