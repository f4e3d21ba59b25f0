"""Log probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orthrus.decoding.drafts import TokenLogprobs
from orthrus.serving.protocol.chat_answers import Logprobs, TokenLogprob, TopLogprob
from orthrus.serving.protocol.completions import CompletionLogprobs
from orthrus.serving.token_texts import TokenTexts

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


def completion_logprobs(
    found: Sequence[TokenLogprobs | None], tokens: Sequence[int], texts: TokenTexts, offset: int
) -> CompletionLogprobs:
    """Of tokens of a text completion, the one that ends it included. offset: of the first token in the text; None
    stands for the first token of a prompt, before which nothing stands."""
    shown = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, each in zip(tokens, found, strict=True):
        text = texts.text(token)
        shown.tokens.append(text)
        shown.text_offset.append(offset)
        shown.token_logprobs.append(None if each is None else finite(each.logprob))
        shown.top_logprobs.append(None if each is None else _table(each, texts))
        offset += len(text)
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
