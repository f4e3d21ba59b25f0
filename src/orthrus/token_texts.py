"""The text and the bytes of single tokens, which log probabilities and `/tokenize` show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

BROKEN = "\ufffd"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""What SentencePiece writes for a blank."""


class TokenTexts:
    """Texts of single tokens of a vocabulary. Special tokens are shown as they are named.

    decode: the text of token ids, without special tokens. vocabulary: gives the id of each token; asked once.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], vocabulary: Callable[[], Mapping[str, int]]) -> None:
        self._decode, self._vocabulary = decode, vocabulary
        self._known: dict[int, tuple[str, bytes]] = {}

    def text(self, token: int) -> str:
        """The text of a token; the bytes of a part of a character as `bytes:\\xe2\\x82`."""
        return self._of(token)[0]

    def utf8(self, token: int) -> list[int]:
        """The bytes of the text of a token."""
        return list(self._of(token)[1])

    def in_text(self, token: int, *, first: bool = False) -> bytes:
        """The bytes that a token adds to a text, of which it is the first token with any or a later one: none if it is
        one that texts leave out, such as an end token. The first may lose its blank."""
        text, content = self._decode([token]), self._of(token)[1]
        left_out = not text and self._pieces.get(token, "").strip(SPACE)
        return text.encode() if left_out or (first and BROKEN not in text) else content

    @cached_property
    def _pieces(self) -> dict[int, str]:
        return {token: piece for piece, token in self._vocabulary().items()}

    def _of(self, token: int) -> tuple[str, bytes]:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._decoded(token)
        return known

    def _decoded(self, token: int) -> tuple[str, bytes]:
        text, piece = self._decode([token]), self._pieces.get(token, "")
        if BROKEN in text:
            content = _bytes_of(piece)
            if content is not None:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content
        if not text:
            text = piece
        elif piece.startswith(SPACE) and not text.startswith(" "):
            text = " " + text
        return text, text.encode()


def _bytes_of(piece: str) -> bytes | None:
    """The bytes of a token that is no whole text: one byte in SentencePiece, several in byte-level vocabularies."""
    single = BYTE.fullmatch(piece)
    if single:
        return bytes([int(single[1], 16)])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in piece) if all(letter in letters for letter in piece) else None


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write for bytes: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
