"""Cycles: one file each. Adding a cycle is adding a file with a `run` and `DRAFTS_AHEAD`.

A cycle proposes, verifies and commits for all sequences of a batch; sequence i lives in slot i of the cache.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

import torch

from orthrus.cache import KVCache
from orthrus.decoding.sequence import Draft, Sequence, Verdict
from orthrus.decoding.verify import Rule
from orthrus.model.decoder import Decoder


class Cycle(Protocol):
    """One propose - verify - commit over a batch."""

    DRAFTS_AHEAD: bool
    """Whether a cycle verifies drafts that an earlier pass made; the prefill then makes the first ones."""

    def run(self, decoder: Decoder, cache: KVCache, batch: list[Sequence], width: int, rule: Rule) -> list[Verdict]:
        """Run it. Returns, per sequence, what was kept."""
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


def verify_and_commit(
    decoder: Decoder, cache: KVCache, batch: list[Sequence], drafts: list[Draft], how: tuple[Rule, str]
) -> list[Verdict]:
    """One AR pass over every anchor and its drafts (equally many per sequence); judge them; set the cache lengths."""
    rule, kind = how
    rows = torch.tensor([[s.anchor, *d.tokens] for s, d in zip(batch, drafts, strict=True)], device=decoder.device)
    logits_BRV = decoder.ar(rows, cache.window(0, len(batch)))
    kept: list[Verdict] = []
    for slot, sequence in enumerate(batch):
        sequence.count_pass(rows.shape[1])
        verdict = rule.verify(sequence.sampler, logits_BRV[slot], drafts[slot], sequence.length)
        kept.append(sequence.commit(verdict, kind, len(drafts[slot].tokens)))
        cache.commit(slot, sequence.length - 1)
    return kept
