"""Text from tokens as they come: no broken characters, no part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
BROKEN = "\ufffd"


class TextStream:
    """Incremental detokenisation of one sequence, with stop strings found across token borders."""

    def __init__(self, decode: Decode, stop_strings: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stop_strings)
        self._tokens: list[int] = []
        self._read = self._settled = 0
        self.text = ""
        self.ends: list[int] = []
        """The length of the text after each token."""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token. Sets `stopped` and cuts the text where a stop string is now complete."""
        self._tokens.append(token)
        self._read_on()
        self.ends.append(len(self.text))

    def _read_on(self) -> None:
        before = self._decode(self._tokens[self._settled : self._read])
        after = self._decode(self._tokens[self._settled :])
        if after.endswith(BROKEN) or len(after) <= len(before):
            return  # an incomplete character, or nothing visible yet
        self._settled, self._read = self._read, len(self._tokens)
        self._extend(after[len(before) :])

    def finish(self) -> None:
        """Add what was held back as an incomplete character."""
        before = self._decode(self._tokens[self._settled : self._read])
        self._extend(self._decode(self._tokens[self._settled :])[len(before) :])
        self._read = len(self._tokens)

    @property
    def safe(self) -> int:
        """How many characters can be shown: what might begin a stop string is held back."""
        for held in range(min(max(map(len, self._stops), default=0) - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-held:]) for stop in self._stops):
                return len(self.text) - held
        return len(self.text)

    def _extend(self, piece: str) -> None:
        if self.stopped:
            return
        seen = max(0, len(self.text) - max(map(len, self._stops), default=0))
        self.text += piece
        found = [at for at in (self.text.find(stop, seen) for stop in self._stops) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
