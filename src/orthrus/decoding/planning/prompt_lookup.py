"""Prompt lookup: drafts from repeated text, which cost no pass.

Where the newest tokens of a sequence occurred before, the tokens that followed them there are the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_MATCH = 3
"""Tokens at the end of the text that must occur earlier in it."""
MAX_MATCH = 16
"""Matches are extended up to this many tokens; the length relative to it is the confidence of the drafts."""


class PromptLookup:
    """An index of the n-grams of one sequence, prompt included."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._continuation: int | None = None

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; each is indexed once."""
        for token in tokens:
            self._tokens.append(token)
            suffix = tuple(self._tokens[-MIN_MATCH:])
            self._continuation = self._after.get(suffix)
            self._after[suffix] = len(self._tokens)

    @property
    def matched(self) -> bool:
        """Whether the newest tokens occur earlier in the text."""
        return self._continuation is not None

    def __len__(self) -> int:
        return len(self._tokens)

    def propose(self, count: int) -> tuple[list[int], int]:
        """Up to `count` tokens that followed the latest match, and the length of the match; ([], 0) without one."""
        if self._continuation is None or len(self._tokens) < MIN_MATCH:
            return [], 0
        earlier, now, length = self._continuation, len(self._tokens), MIN_MATCH
        while length < min(MAX_MATCH, earlier) and self._tokens[earlier - 1 - length] == self._tokens[now - 1 - length]:
            length += 1
        return self._tokens[earlier : earlier + count], length
