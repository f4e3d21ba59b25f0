"""Propose: diffusion rows become drafts, from a pass of their own or from blocks that shared an AR pass."""

from __future__ import annotations

import torch
from torch import Tensor

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
    return [
        rule.propose(s.sampler, logits_RV, s.length, s.length - 1)
        for s, logits_RV in zip(batch, logits_BRV, strict=True)
    ]


def propose_ahead(
    decoder: Decoder, batch: list[Sequence], blocks: list[Tensor], roots: list[int], rule: Rule
) -> list[Draft]:
    """Drafts from blocks of the pass just run: final hidden states [width, D] of each, and its root's position.

    A sequence has committed more tokens than the root since: the rows that predict those are passed over, and of the
    head's work only the remaining rows are done. There may be none.
    """
    assert decoder.diffusion is not None
    trained = decoder.diffusion.trained_rows
    useful = [block[s.length - 1 - root : trained] for s, block, root in zip(batch, blocks, roots, strict=True)]
    logits_NV = decoder.logits(torch.cat(useful)[None])[0]
    return [
        rule.propose(s.sampler, logits_RV, s.length, root) if len(logits_RV) else Draft()
        for s, logits_RV, root in zip(batch, logits_NV.split([len(rows) for rows in useful]), roots, strict=True)
    ]
