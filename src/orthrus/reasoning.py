"""Reasoning of thinking models: `<think>...</think>` at the beginning of an answer, split from its content.

Text may come in any pieces: what is split does not depend on where they end. Newlines around the two tags are dropped,
since they belong to the format; chat templates write them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of reasoning."""

    text: str


class ReasoningParser:
    """Splits an answer as it is generated. `opened` says that the prompt has already written `<think>`.

    Text that may be the beginning of a tag, and newlines that may precede one, are held back until it is certain.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self.reasoning = opened
        """Whether the text pushed so far ends within the reasoning."""
        self._started = opened
        self._at_border = opened
        self._held = ""

    def push(self, text: str) -> list[str | ReasoningDelta]:
        """Add text. Returns the content, as strings, and the reasoning that have become certain."""
        self._held += text
        found: list[str | ReasoningDelta] = []
        if not self._started and not self._start():
            return found
        if self.reasoning:
            self._read_reasoning(found)
        if not self.reasoning:
            self._emit_content(found)
        return found

    def finish(self) -> list[str | ReasoningDelta]:
        """The text that was held back, now that the answer has ended. Reasoning may end without its tag."""
        held, self._held = self._held, ""
        if self.reasoning:
            held = self._inside(held).rstrip("\n")
            return [ReasoningDelta(held)] if held else []
        held = self._inside(held)
        return [held] if held else []

    def _start(self) -> bool:
        """Whether it is certain if the answer begins with reasoning."""
        begun = self._held.lstrip()
        if begun.startswith(BEGIN):
            self._held, self.reasoning, self._at_border = begun.removeprefix(BEGIN), True, True
        elif BEGIN.startswith(begun):
            return False
        self._started = True
        return True

    def _read_reasoning(self, found: list[str | ReasoningDelta]) -> None:
        text, closed, rest = self._held.partition(END)
        certain = text.rstrip("\n") if closed else text[: len(text) - _held_back(text)]
        shown = self._inside(certain)
        if shown:
            found.append(ReasoningDelta(shown))
        if closed:
            self.reasoning, self._at_border, self._held = False, True, rest
        else:
            self._held = text[len(certain) :]

    def _emit_content(self, found: list[str | ReasoningDelta]) -> None:
        shown, self._held = self._inside(self._held), ""
        if shown:
            found.append(shown)

    def _inside(self, text: str) -> str:
        """Text without the newlines that follow a tag."""
        if self._at_border:
            text = text.lstrip("\n")
            self._at_border = not text
        return text


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """The reasoning (None where there is none) and the content of a whole answer."""
    parser = ReasoningParser(opened=opened)
    return joined([*parser.push(text), *parser.finish()])


def joined(parts: Iterable[str | ReasoningDelta]) -> tuple[str | None, str]:
    """The pieces of a parser put together: the reasoning (None where there is none) and the content."""
    reasoning, content = "", ""
    for part in parts:
        if isinstance(part, ReasoningDelta):
            reasoning += part.text
        else:
            content += part
    return reasoning or None, content


def _held_back(text: str) -> int:
    """Length of the end of a text that may be the beginning of the closing tag, or newlines before it."""
    tag = next((n for n in range(min(len(END) - 1, len(text)), 0, -1) if END.startswith(text[-n:])), 0)
    before = text[: len(text) - tag]
    return tag + len(before) - len(before.rstrip("\n"))
