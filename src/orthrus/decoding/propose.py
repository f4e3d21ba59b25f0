"""Propose: one diffusion pass drafts a block for every sequence of the batch."""

from __future__ import annotations

from orthrus.cache import CacheWindow
from orthrus.decoding.sequence import Draft, Sequence
from orthrus.decoding.verify import Rule
from orthrus.model.decoder import Decoder


def propose(decoder: Decoder, window: CacheWindow, batch: list[Sequence], width: int, rule: Rule) -> list[Draft]:
    """Drafts for each sequence, at most `trained_rows`: one diffusion pass over its anchor and width - 1 masks."""
    assert decoder.diffusion is not None
    rows = min(width, decoder.diffusion.trained_rows)
    logits_BRV = decoder.diffuse([s.anchor for s in batch], width, window, rows)
    for sequence in batch:
        sequence.count_pass(width)
    return [rule.propose(s.sampler, logits_RV, s.length) for s, logits_RV in zip(batch, logits_BRV, strict=True)]
