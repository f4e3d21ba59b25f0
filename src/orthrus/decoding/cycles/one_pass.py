"""The one-pass cycle: one pass verifies the drafts at hand and, from blocks rooted in its own rows, drafts the next.

That is legal because no AR key of a layer depends on a diffusion row, so a block may read the keys of the AR rows
beside it. The block that counts is the one rooted at the last accepted draft, as if a pass of its own had been run
there; its first row predicts the bonus, which is known by then, and its other rows are the next drafts.
"""

from __future__ import annotations

import torch

from orthrus.cache import KVCache
from orthrus.decoding.propose import propose_ahead
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.decoding.verify import Rule
from orthrus.model.decoder import Decoder

NAME = "one-pass"
DRAFTS_AHEAD = True


def run(decoder: Decoder, cache: KVCache, batch: list[Sequence], width: int, rule: Rule) -> list[Verdict]:
    """Verify what is ahead, with a block of `width` rows for every number of drafts that may be accepted."""
    most = max(len(s.ahead.tokens) for s in batch)
    rows = [[s.anchor, *s.ahead.tokens, *[s.anchor] * (most - len(s.ahead.tokens))] for s in batch]
    logits_BRV, blocks_BJWD = decoder.ar_and_diffuse(
        torch.tensor(rows, device=decoder.device), range(most + 1), width, cache.window(0, len(batch))
    )
    kept, unfinished, blocks, roots = [], [], [], []
    for slot, sequence in enumerate(batch):
        draft, anchor = sequence.ahead, sequence.length - 1
        offered = len(draft.tokens)
        sequence.count_pass((offered + 1) * (width + 1))
        verdict = rule.verify(sequence.sampler, logits_BRV[slot, : offered + 1], draft, sequence.length)
        kept.append(sequence.commit(verdict, NAME, offered))
        cache.commit(slot, sequence.length - 1)
        if sequence.finish_reason is None:
            unfinished.append(sequence)
            blocks.append(blocks_BJWD[slot, verdict.accepted])
            roots.append(anchor + verdict.accepted)
    if unfinished:
        for sequence, draft in zip(unfinished, propose_ahead(decoder, unfinished, blocks, roots, rule), strict=True):
            sequence.ahead = draft
    return kept
