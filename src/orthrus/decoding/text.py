"""Streamed text from tokens: no incomplete character and no part of a stop string is ever shown.

Text and pieces depend on the tokens alone, not on how many of them come between two calls of `take`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Decode = Callable[[Sequence[int]], str]
BROKEN = "\ufffd"
"""What a tokenizer decodes an incomplete character to."""
MAX_WINDOW, KEPT = 32, 8
"""The most tokens that are decoded at once, and how many of them stay where none of them completes a character: its
four bytes are at most four tokens, and the decoding of any bytes agrees after three with one that begins later."""
Source = Literal["draft", "lookup", "bonus", "plain"]
"""How a token came: an accepted draft of a block, an accepted one that only the text so far suggested, the token
after the drafts of a pass, or the token of a pass without drafts."""


@dataclass(frozen=True)
class Piece:
    """The text of one token (it may be empty: half a character), its index in the answer, and how it came."""

    text: str
    token: int
    source: Source

    @property
    def drafted(self) -> bool:
        """Whether the token was an accepted draft."""
        return self.source in ("draft", "lookup")


class TextStream:
    """Incremental detokenisation of one sequence, which also finds stop strings that cross token borders."""

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stop_strings)
        self._window: list[int] = []
        self._context = self._shown = 0
        """Tokens at the start of the window that are there for the sake of the next ones; characters of the window that
        are part of the text."""
        self.text = ""
        self.ends: list[int] = []
        """The length of the text after each token."""
        self.stopped = False
        self._sources: list[Source] = []
        self._finished = False
        self._complete_tokens = self._taken_tokens = self._taken_characters = 0

    def push(self, token: int, source: Source = "plain") -> None:
        """Add a token. Sets `stopped` and cuts the text where a stop string is now complete."""
        self._window.append(token)
        self._sources.append(source)
        self._decode_window()
        self.ends.append(len(self.text))

    def _decode_window(self) -> None:
        decoded = self._decode(self._window)
        incomplete = decoded.endswith(BROKEN)
        if not incomplete:
            self._complete_tokens = len(self._sources)
            if len(decoded) > self._shown:
                self._extend(decoded[self._shown :])
                del self._window[: self._context]
                self._context, self._shown = len(self._window), len(self._decode(self._window))
                return
        if not self._decode(self._window[-1:] * 2):  # twice, since tokenizers drop a blank that begins a text
            self._window.pop()
        elif incomplete and len(self._window) > MAX_WINDOW:
            self._shorten_window(decoded)

    def _shorten_window(self, decoded: str) -> None:
        """Add the text of a window that completes no character, but for its last one, which may still be completed."""
        kept = self._window[-KEPT:]
        tail = self._decode(kept)
        if tail.endswith(BROKEN):  # else the window begins inside a character, and the next token may do better
            self._extend(decoded[self._shown : -1])
            self._window, self._context, self._shown = kept, 0, len(tail) - 1
            self._complete_tokens = len(self._sources) - 1

    def finish(self) -> None:
        """Add the text that was held back because its last character is incomplete."""
        self._extend(self._decode(self._window)[self._shown :])
        self._window, self._context, self._shown = [], 0, 0
        self._complete_tokens = len(self._sources)
        self._finished = True

    def take(self) -> tuple[Piece, ...]:
        """The text that has become certain since the last call; after `finish`, all that is left.

        The tokens of an incomplete character wait for its end: the last of them may get what it decodes to.
        """
        pieces = []
        while self._taken_tokens < self._complete_tokens:
            token = self._taken_tokens
            if not self._finished and self.ends[token] > self.safe:
                break
            end = len(self.text) if self._finished and token == len(self.ends) - 1 else self.ends[token]
            pieces.append(Piece(self.text[self._taken_characters : end], token, self._sources[token]))
            self._taken_characters = max(self._taken_characters, min(end, len(self.text)))
            self._taken_tokens += 1
        return tuple(pieces)

    @property
    def safe(self) -> int:
        """How many characters can be shown: an end that may begin a stop string is held back."""
        for held in range(min(max(map(len, self._stops), default=0) - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-held:]) for stop in self._stops):
                return len(self.text) - held
        return len(self.text)

    def _extend(self, piece: str) -> None:
        if self.stopped:
            return
        searched = max(0, len(self.text) - max(map(len, self._stops), default=0))
        self.text += piece
        cuts = [at for at in (self.text.find(stop, searched) for stop in self._stops) if at >= 0]
        if cuts:
            self.text, self.stopped = self.text[: min(cuts)], True
