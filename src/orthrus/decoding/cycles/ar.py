"""The width-1 cycle: no draft, one token for one pass. Plain decoding on the same path as the other cycles."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import verify_and_commit
from orthrus.decoding.sequence import Draft, Sequence, Verdict
from orthrus.decoding.verify import Rule
from orthrus.model.decoder import Decoder

NAME = "ar"
DRAFTS_AHEAD = False


def run(decoder: Decoder, cache: KVCache, batch: list[Sequence], width: int, rule: Rule) -> list[Verdict]:
    """Verify nothing, commit the bonus."""
    del width
    return verify_and_commit(decoder, cache, batch, [Draft() for _ in batch], (rule, NAME))
