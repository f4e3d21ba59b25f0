"""Lines of streamed text that break between words at the margin of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.cells import cell_len
from rich.console import Console

FENCE = "```"
Styled = tuple[str, str]
"""Text and its style."""


class Unwrapped:
    """Text for a file or a pipe, as it comes."""

    def take(self, text: str, style: str = "") -> Iterator[Styled]:
        """The text."""
        yield text, style

    def finish(self) -> Iterator[Styled]:
        """Nothing is held."""
        yield from ()

    def start_line(self, *, after: str = "") -> None:
        """Lines do not matter."""


class WordWrap:
    """Takes text piece by piece and gives it back with line breaks. A word is held until it is complete or as wide as
    a line. Lines between fences of code stay as they are, so that they can be copied."""

    def __init__(self, width: Callable[[], int]) -> None:
        """`width`: the columns of the terminal, which may change meanwhile."""
        self._width = width
        self._word: list[Styled] = []
        self._column = 0
        self._code = self._inside = False
        """Whether the line is one of code; whether a word wider than a line has begun, which the terminal breaks."""

    def take(self, text: str, style: str = "") -> Iterator[Styled]:
        """The text that can be shown now, in its order."""
        for unit in text:
            if unit.isspace():
                yield from self._space(unit, style)
                continue
            wide = cell_len(unit) > 1  # such characters are words of their own
            if wide:
                yield from self.finish()
            self._word.append((unit, style))
            if wide or self._cells >= self._width():
                yield from self.finish()
                self._inside = not wide

    def finish(self) -> Iterator[Styled]:
        """The word that is held."""
        if not self._word:
            return
        cells, word = self._cells, self._word
        if not self._column and "".join(text for text, _ in word).startswith(FENCE):
            self._code = not self._code
        if self._column and self._column + cells > self._width() and not self._code and not self._inside:
            yield "\n", ""
            self._column = 0
        yield from _joined(word)
        self._column += cells
        if self._inside:
            self._column %= self._width()
        self._word = []

    def start_line(self, *, after: str = "") -> None:
        """The terminal is at the begin of a line, and what is held is no longer part of the text. after: the lines that
        are, of which the last may be one of code."""
        self._word, self._column, self._inside = [], 0, False
        self._code = sum(line.startswith(FENCE) for line in after.split("\n")) % 2 == 1

    def _space(self, unit: str, style: str) -> Iterator[Styled]:
        yield from self.finish()
        self._inside = False
        if unit == "\n":
            self._column = 0
        elif self._column >= self._width() and not self._code:  # a space at the margin ends the line
            self._column = 0
            yield "\n", ""
            return
        else:
            self._column += 8 - self._column % 8 if unit == "\t" else 1
        yield unit, style

    @property
    def _cells(self) -> int:
        return sum(cell_len(text) for text, _ in self._word)


def lines_for(console: Console) -> Unwrapped | WordWrap:
    """What breaks the lines of text that is streamed to `console`: nothing in a file or a pipe, colored or not."""
    return WordWrap(lambda: console.width) if console.file.isatty() else Unwrapped()


def _joined(word: list[Styled]) -> Iterator[Styled]:
    """Neighbours of one style as one."""
    held, last = "", word[0][1]
    for text, style in word:
        if style != last:
            yield held, last
            held, last = "", style
        held += text
    yield held, last
