"""The draft vocabulary in a config: which tokens the view drafts, as one bit per token of the vocabulary.

The field `draft_vocabulary` has the `size` and the `bitmap`, compressed by zlib and in base64: about 10 kB for 32,000
of 152,000 tokens. The first token is the highest bit of the first byte. Without the field all tokens are drafted.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np

from orthrus.checkpoint.validation import Field, check, refuse
from orthrus.config import VOCABULARY_MULTIPLE

FIELD = "draft_vocabulary"
FIELDS = {
    "size": Field(int, VOCABULARY_MULTIPLE, 2**31, required=True),
    "bitmap": Field(str, required=True),
}


def encode(tokens: tuple[int, ...]) -> dict[str, Any]:
    """The field of a config for these tokens, which ascend."""
    bits = np.zeros(tokens[-1] + 1, np.uint8)
    bits[list(tokens)] = 1
    packed = zlib.compress(np.packbits(bits).tobytes(), 9)
    return {"size": len(tokens), "bitmap": base64.b64encode(packed).decode("ascii")}


def decode(found: Any, where: object, vocab_size: int) -> tuple[int, ...] | None:
    """The tokens of a field; None where there is none. Raises ValueError naming what is wrong with it."""
    if found is None:
        return None
    if not isinstance(found, dict):
        refuse(where, FIELD, found, "an object")
    check(where, found, FIELDS, f"{FIELD}.")
    size, bitmap = found["size"], found["bitmap"]
    if size % VOCABULARY_MULTIPLE or size > vocab_size:
        refuse(where, f"{FIELD}.size", size, f"a multiple of {VOCABULARY_MULTIPLE}, at most {vocab_size}")
    try:
        limit = vocab_size // 8 + 1
        packed = zlib.decompressobj().decompress(base64.b64decode(bitmap, validate=True), limit)
    except (binascii.Error, zlib.error, ValueError):
        packed = b""
    (tokens,) = np.unpackbits(np.frombuffer(packed, np.uint8)).nonzero()
    if len(tokens) != size or (size and tokens[-1] >= vocab_size):
        refuse(where, f"{FIELD}.bitmap", bitmap, f"one bit for each of {size} tokens below {vocab_size}")
    return tuple(tokens.tolist())
