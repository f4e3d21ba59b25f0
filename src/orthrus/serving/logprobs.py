"""Log probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence

from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.serving.protocol.chat_answers import Logprobs, TokenLogprob, TopLogprob
from orthrus.serving.protocol.completions import CompletionLogprobs
from orthrus.token_texts import BROKEN, TokenTexts

IMPOSSIBLE = -9999.0
"""JSON has no -infinity; OpenAI's API shows this instead."""


def chat_logprobs(found: Iterable[TokenLogprobs], texts: TokenTexts, ends: frozenset[int]) -> Logprobs:
    """Of the tokens of a chat answer. The token that ends it is no part of it."""
    return Logprobs(content=[_token(each, texts) for each in found if each.token not in ends], refusal=None)


def _token(found: TokenLogprobs, texts: TokenTexts) -> TokenLogprob:
    top = [_top(token, logprob, texts) for token, logprob in found.top]
    return TokenLogprob(**_top(found.token, found.logprob, texts).model_dump(), top_logprobs=top)


def _top(token: int, logprob: float, texts: TokenTexts) -> TopLogprob:
    return TopLogprob(token=texts.text(token), logprob=finite(logprob), bytes=texts.utf8(token))


class TextOffsets:
    """Where each token begins in the text of a completion, in characters. A token that the text leaves out takes no
    room in it, nor does one that only begins a character."""

    def __init__(self, texts: TokenTexts, offset: int = 0) -> None:
        """offset: where the answer begins."""
        self._texts, self._offset = texts, offset
        self._begin()

    def of_prompt(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Of the tokens of an echoed prompt. `text`, which stands before the answer, may name special tokens."""
        offsets = []
        for token in tokens:
            name = self._texts.text(token)
            if not self._texts.in_text(token) and text.startswith(name, self._offset):
                offsets.append(self._offset)
                self._offset += len(name)
            else:
                offsets.append(min(self._add(token), len(text)))
        self._offset = len(text)
        self._begin()
        return offsets

    def of_answer(self, tokens: Iterable[int]) -> list[int]:
        """Of the next tokens of the answer."""
        return [self._add(token) for token in tokens]

    def _begin(self) -> None:
        self._decoder, self._first = getincrementaldecoder("utf-8")("replace"), True

    def _add(self, token: int) -> int:
        """Add a token. Returns where it begins: after a character that it leaves incomplete."""
        content, incomplete = self._texts.in_text(token, first=self._first), bool(self._decoder.getstate()[0])
        self._first = self._first and not content
        text, begin = self._decoder.decode(content), self._offset
        self._offset += len(text)
        return begin + (incomplete and (not content or text.startswith(BROKEN)))


def completion_logprobs(
    found: Sequence[TokenLogprobs | None], tokens: Sequence[int], texts: TokenTexts, offsets: Sequence[int]
) -> CompletionLogprobs:
    """Of tokens of a text completion, the one that ends it included. offsets: where they begin in the text. None stands
    for the first token of a prompt, before which nothing stands."""
    shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, each, offset in zip(tokens, found, offsets, strict=True):
        shown.tokens.append(texts.text(token))
        shown.text_offset.append(offset)
        shown.token_logprobs.append(None if each is None else finite(each.logprob))
        shown.top_logprobs.append(None if each is None else _table(each, texts))
    return shown


def _table(found: TokenLogprobs, texts: TokenTexts) -> dict[str, float]:
    """The most likely tokens and the chosen one. Of tokens with the same text, the likelier counts."""
    table: dict[str, float] = {}
    for token, logprob in (*found.top, (found.token, found.logprob)):
        table.setdefault(texts.text(token), finite(logprob))
    return table


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it."""
    return max(logprob, IMPOSSIBLE)
