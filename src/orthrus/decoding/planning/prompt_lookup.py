"""Drafts for free where a text repeats itself: what followed the last time these tokens stood there."""

from __future__ import annotations

LEAST = 3
"""Tokens that must repeat before the text counts as repeating itself."""
LONGEST = 16
"""Matches are told apart by their length up to this."""


class Lookup:
    """The n-grams of one sequence, prompt included."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._continuation: int | None = None

    def extend(self, tokens: list[int]) -> None:
        """Append tokens; each is indexed once."""
        for token in tokens:
            self._tokens.append(token)
            suffix = tuple(self._tokens[-LEAST:])
            self._continuation = self._after.get(suffix)
            self._after[suffix] = len(self._tokens)

    @property
    def matched(self) -> bool:
        """Whether the newest tokens stood in the text before."""
        return self._continuation is not None

    def __len__(self) -> int:
        return len(self._tokens)

    def propose(self, count: int) -> tuple[list[int], int]:
        """Up to `count` tokens that followed the latest equal suffix, and how long the match is; none where none is."""
        if self._continuation is None or len(self._tokens) < LEAST:
            return [], 0
        earlier, now, length = self._continuation, len(self._tokens), LEAST
        while length < min(LONGEST, earlier) and self._tokens[earlier - 1 - length] == self._tokens[now - 1 - length]:
            length += 1
        return self._tokens[earlier : earlier + count], length
