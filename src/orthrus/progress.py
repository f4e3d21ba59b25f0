"""A progress bar of the prompts of one call, on stderr: one line, drawn again in place and erased before anything else
is shown."""

from __future__ import annotations

import math
import shutil
import sys
from time import perf_counter

from orthrus.decoding.cycle import Step

SECONDS_BETWEEN = 0.1
ERASE = "\r\x1b[2K"
CELLS = 30


class AnswerProgress:
    """Counts the steps of `total` prompts. shown: whether to draw; None for a terminal and two prompts or more."""

    def __init__(self, total: int, *, shown: bool | None = None) -> None:
        self._total, self._finished, self._tokens = total, 0, 0
        self._shown = total > 1 and sys.stderr.isatty() if shown is None else shown
        self._started, self._drawn_at = perf_counter(), -math.inf
        self._visible = False

    def count(self, step: Step) -> None:
        """Count what a sequence gained, and draw if the last time is long enough ago."""
        self._finished += step.finish_reason is not None
        self._tokens += len(step.kept.tokens)
        if self._shown and perf_counter() - self._drawn_at >= SECONDS_BETWEEN:
            line = str(self)[: max(shutil.get_terminal_size().columns - 1, 0)]
            self._visible, self._drawn_at = True, perf_counter()
            _write(ERASE + line)

    def hide(self) -> None:
        """Erase the line; the next step draws it again."""
        if self._visible:
            self._visible, self._drawn_at = False, -math.inf
            _write(ERASE)

    def __str__(self) -> str:
        filled = CELLS * self._finished // max(self._total, 1)
        rate = self._tokens / max(perf_counter() - self._started, 1e-9)
        bar = "\u2501" * filled + "\u2500" * (CELLS - filled)
        return f"{self._finished} of {self._total} prompts {bar} {rate:.0f} tokens/s"


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
