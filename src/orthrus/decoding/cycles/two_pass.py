"""The two-pass cycle: a diffusion pass drafts, an AR pass verifies (arXiv 2605.12825, section 3)."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import verify_and_commit
from orthrus.decoding.propose import propose
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.decoding.verify import Rule
from orthrus.model.decoder import Decoder

NAME = "two-pass"
DRAFTS_AHEAD = False


def run(decoder: Decoder, cache: KVCache, batch: list[Sequence], width: int, rule: Rule) -> list[Verdict]:
    """Propose, verify, commit: up to min(width, trained rows) drafts and a bonus for two passes."""
    drafts = propose(decoder, cache.window(0, len(batch)), batch, width, rule)
    return verify_and_commit(decoder, cache, batch, drafts, (rule, NAME))
