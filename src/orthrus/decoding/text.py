"""Streamed text from tokens: no incomplete character and no part of a stop string is ever shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
BROKEN = "\ufffd"
"""What a tokenizer decodes an incomplete character to."""


class TextStream:
    """Incremental detokenisation of one sequence, which also finds stop strings that cross token borders."""

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stop_strings)
        self._tokens: list[int] = []
        self._read_offset = self._prefix_offset = 0
        self.text = ""
        self.ends: list[int] = []
        """The length of the text after each token."""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token. Sets `stopped` and cuts the text where a stop string is now complete."""
        self._tokens.append(token)
        self._decode_pending()
        self.ends.append(len(self.text))

    def _decode_pending(self) -> None:
        before = self._decode(self._tokens[self._prefix_offset : self._read_offset])
        after = self._decode(self._tokens[self._prefix_offset :])
        if after.endswith(BROKEN) or len(after) <= len(before):
            return  # an incomplete character, or no visible text yet
        self._prefix_offset, self._read_offset = self._read_offset, len(self._tokens)
        self._extend(after[len(before) :])

    def finish(self) -> None:
        """Add the text that was held back because its last character is incomplete."""
        before = self._decode(self._tokens[self._prefix_offset : self._read_offset])
        self._extend(self._decode(self._tokens[self._prefix_offset :])[len(before) :])
        self._read_offset = len(self._tokens)

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
