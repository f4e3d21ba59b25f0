"""Prompts that fill in the middle (FIM): a text before a gap and one after it as the token ids that a model expects.

The tokens between the parts are the model's own. Text that looks like one of them, or like another special token, is
encoded as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from zlib import crc32

from orthrus.checkpoint.fim_tokens import FimTokens

Encode = Callable[[str, bool], list[int]]
"""Token ids of a text; the second argument says whether with the special tokens that the tokenizer adds."""
MARK = "☺"
"""A character that no token joins to its neighbours: what follows it is encoded as in the midst of a text."""
SUFFIX_PART = 8
"""The text after a gap gets one token in so many."""
REPOSITORY_NAME = "project"
SNIPPET = "\n\n--- snippet ---\n\n"
"""What goes before another file where a model has no token for that, as in llama.cpp."""
MISSING = (
    "suffix needs a model that can fill in the middle of a text, and this one has no tokens for that in its vocabulary"
    " (such as <|fim_prefix|>): load a code model such as qwen2.5-coder-0.5b, or leave suffix out"
)
CHARACTERS = 16
"""Characters per token above which a line is not counted: no text of that length is a line that someone wrote."""
LINES_KNOWN = 8192
"""Lines whose number of tokens is kept, since an editor sends nearly the same lines again and again."""


class FillInMiddle:
    """Makes the FIM prompts of one model."""

    def __init__(self, tokens: FimTokens, encode: Encode) -> None:
        self.tokens, self._encode = tokens, encode
        self._count = lru_cache(LINES_KNOWN)(lambda line: len(self.literal(line)))

    def prompt(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), name: str | None = None
    ) -> tuple[int, ...]:
        """The token ids of a prompt whose answer goes between prefix and suffix.

        files: names and texts of other files, which stand before it. name: of the file at hand.
        """
        tokens = self.tokens
        before = self._encode("", True) + self._files(files, name)
        after = [tokens.suffix, *self.literal(suffix, within=True), tokens.middle]
        return (*before, tokens.prefix, *self.literal(prefix), *after)

    def literal(self, text: str, *, within: bool = False) -> list[int]:
        """The token ids of a text in which nothing is read as a special token.

        within: the text stands in the midst of another, so tokenizers that put a blank before a text put none.
        """
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._within(piece) if within and self._adds_blank else self._encode(piece, False)
            within = True
        return ids

    def newest(self, files: Sequence[tuple[str, str]], tokens: int) -> list[tuple[str, str]]:
        """The last of some files that have at most so many tokens together, with their names."""
        kept = len(files)
        while kept and (tokens := tokens - len(self._files(files[kept - 1 : kept], None))) >= 0:
            kept -= 1
        return list(files[kept:])

    def window(self, prefix: str, suffix: str, tokens: int) -> tuple[str, str]:
        """What is left of two texts under a limit of their tokens together. The suffix, which is read again whenever
        the prefix has grown, gets the smaller part."""
        after = max(1, tokens // SUFFIX_PART)
        return self.cut(prefix, suffix, tokens - after, after)

    def cut(self, prefix: str, suffix: str, prefix_tokens: int, suffix_tokens: int) -> tuple[str, str]:
        """What is left of two texts under limits of their tokens: the end of the first and the start of the second, cut
        at borders of lines.

        Where the prefix is too long it starts at a line that its content decides, so the start stays where it is while
        text is typed at the end, and then moves by many lines at once: a prompt that starts like an earlier one need
        not be read again.
        """
        before, after = prefix.splitlines(keepends=True), suffix.splitlines(keepends=True)
        longest, shortest = (self._fitting(before[::-1], tokens) for tokens in (prefix_tokens, prefix_tokens * 3 // 4))
        if longest == 0 and before:
            prefix = _end_of_line(before[-1], prefix_tokens)
        elif longest < len(before):
            starts = range(len(before) - longest, len(before) - max(1, shortest) + 1)
            prefix = "".join(before[min(starts, key=lambda line: _prominence(before, line)) :])
        fitting = self._fitting(after, suffix_tokens)
        return prefix, "".join(after[:fitting]) if fitting or not after else after[0][:suffix_tokens]

    def _fitting(self, lines: Sequence[str], limit: int) -> int:
        """How many of the first lines have at most so many tokens together."""
        total = 0
        for number, line in enumerate(lines):
            total += self._count(line) if len(line) <= limit * CHARACTERS else limit + 1
            if total > limit:
                return number
        return len(lines)

    def _files(self, files: Sequence[tuple[str, str]], name: str | None) -> list[int]:
        if not files and name is None:
            return []
        tokens, ids = self.tokens, list[int]()
        if tokens.repository is not None:
            ids += [tokens.repository, *self.literal(f"{REPOSITORY_NAME}\n")]
        for other, text in files:
            marked = [tokens.file, *self.literal(f"{other}\n{text}")] if tokens.file is not None else None
            ids += self.literal(SNIPPET + text) if marked is None else marked
        if name is not None and tokens.file is not None:
            ids += [tokens.file, *self.literal(f"{name}\n")]
        return ids

    def _pieces(self, text: str) -> list[str]:
        """The text in pieces none of which holds the text of a special token."""
        pieces, start = [], 0
        while (match := self._special.search(text, start)) is not None:
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]] if text[start:] else pieces

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.tokens.special, key=len, reverse=True)
        return re.compile("|".join(re.escape(name) for name in longest_first))

    @cached_property
    def _adds_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text."""
        alone = self._encode("a", False)
        return self._encode(f"{MARK}a", False)[-len(alone) :] != alone

    def _within(self, text: str) -> list[int]:
        return self._encode(MARK + text, False)[len(self._encode(MARK, False)) :]


def _prominence(lines: Sequence[str], number: int) -> tuple[bool, int, int]:
    """The order of lines as the start of a text, by content alone: those with text, the least indented first."""
    line = lines[number]
    indentation = len(line) - len(line.lstrip())
    return not line.strip(), indentation, crc32("".join(lines[number : number + 3]).encode("utf-8", "replace"))


def _end_of_line(line: str, tokens: int) -> str:
    """The end of a line that is longer than a prompt may be, with a character per token, which starts in steps too."""
    step = max(1, tokens // 4)
    return line[-(-max(0, len(line) - tokens) // step) * step :]
