"""The width-1 cycle: no draft, one token for one pass. Plain decoding on the same path as the other cycles."""

from __future__ import annotations

from orthrus.cache import KVCache
from orthrus.decoding.cycles import verify_and_commit
from orthrus.decoding.sequence import Sequence, Verdict
from orthrus.model.decoder import Decoder

NAME = "ar"


def run(decoder: Decoder, cache: KVCache, batch: list[Sequence], width: int) -> list[Verdict]:
    """Verify nothing, commit the bonus."""
    del width
    return verify_and_commit(decoder, cache, batch, [[] for _ in batch], NAME)
