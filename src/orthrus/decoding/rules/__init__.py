"""Verification rules, one file each. A rule drafts from diffusion logits and judges drafts by AR logits.

Adding a rule is adding a file with `propose` and `verify`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from torch import Tensor

from orthrus.decoding.sampling import Sampler
from orthrus.decoding.sequence import Draft, Verdict


class Rule(Protocol):
    """The two halves of a rule."""

    def propose(self, sampler: Sampler, logits_RV: Tensor, position: int, block: int) -> Draft:
        """Draft the tokens at absolute `position` and after it, one per row; `block` numbers the block they are from.

        That is twice the position of its root, and one more where it shared an AR pass: both may be run at one root.
        """
        ...

    def verify(self, sampler: Sampler, logits_RV: Tensor, draft: Draft, position: int) -> Verdict:
        """Judge m drafts by the logits [m + 1, V] after the anchor and each of them; `position` is the first's."""
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
