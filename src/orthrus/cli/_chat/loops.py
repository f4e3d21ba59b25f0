"""Notice when an answer has begun to repeat itself word for word."""

from __future__ import annotations

MAX_PERIOD = 64
MIN_REPEATED = 32
"""Tokens that must repeat what came one period before. A table or a row of zeros repeats too, but not for so long."""


class LoopDetector:
    """Follows the tokens of an answer. A loop has a period of at most `MAX_PERIOD` tokens and is seen when the period
    has come three times, and `MIN_REPEATED` tokens have been repetitions."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._repeated = [0] * (MAX_PERIOD + 1)

    def push(self, token: int) -> int | None:
        """Add a token. Returns how many tokens came before the first repetition, if this is a loop now."""
        self._tokens.append(token)
        for period in range(1, min(MAX_PERIOD, len(self._tokens) - 1) + 1):
            again = self._tokens[-1 - period] == token
            self._repeated[period] = self._repeated[period] + 1 if again else 0
            if self._repeated[period] >= max(2 * period, MIN_REPEATED):
                return len(self._tokens) - self._repeated[period]
        return None
