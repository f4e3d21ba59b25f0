"""Prompts to token ids and back: checks of prompts, the chat template, and a lock around the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

from orthrus.checkpoint.fim_tokens import FimTokens
from orthrus.checkpoint.tokenizer import TextTokenizer
from orthrus.fill_in_middle import MISSING, FillInMiddle
from orthrus.options import Settings, as_integer, as_integers, wrong
from orthrus.prompt_files import Gap

P = TypeVar("P")
T = TypeVar("T")
Message = Mapping[str, Any]
"""`role` and `content` (a string or a list of OpenAI text parts); the chat template receives all other keys too."""
Prompt = str | Gap | Seq[Message] | Seq[int]
ROLES = ("system", "user", "assistant", "tool")
EXPECTED = "a string, a list of messages, or a list of token ids"


class Tokenization:
    """A thread-safe tokenizer.

    Tokenizers of `transformers` set padding and truncation on a shared object before they encode, which fails while
    another thread encodes, so every call of those holds a lock.
    """

    def __init__(self, tokenizer: TextTokenizer, fim: FimTokens | None = None) -> None:
        self._tokenizer = tokenizer
        self._lock: AbstractContextManager[object] = nullcontext() if tokenizer.thread_safe else Lock()
        self._texts: dict[int, str] = {}
        self._fim = None if fim is None else FillInMiddle(fim, self._encode)

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[int, ...]:
        """Token ids of a prompt, rendered by the chat template unless `raw` or `suffix` is set or the tokenizer has
        none.

        Raises ValueError where the prompt is invalid or the template rejects it.
        """
        if isinstance(prompt, Gap):
            if settings.suffix is not None or settings.system is not None or settings.tools:
                raise ValueError("a prompt with a suffix of its own allows no other suffix, system message or tools")
            return self.fill_in_middle.prompt(prompt.prefix, prompt.suffix)
        checked = checked_prompt(prompt)
        if settings.suffix is not None:
            if not isinstance(checked, str):
                raise ValueError("suffix needs a prompt that is a string: the text before the gap")
            return self.fill_in_middle.prompt(checked, settings.suffix)
        if isinstance(checked, tuple):
            return checked
        template = self._tokenizer.chat_template
        if isinstance(checked, str) and (settings.raw or not template):
            if settings.system is not None or settings.tools:
                lost = "a system message" if settings.system is not None else "tools"
                raise ValueError(f"this tokenizer has no chat template, so there is no place for {lost}")
            with self._lock:
                return tuple(self._tokenizer.encode(checked))
        if settings.raw:
            raise ValueError("raw skips the chat template, but messages need the chat template: drop one of them")
        if not template:
            raise ValueError("messages need a chat template and this tokenizer has none; pass the prompt as a string")
        if isinstance(checked, str):
            if not checked.strip():
                raise ValueError("the prompt is empty")
            checked = [{"role": "user", "content": checked}]
        if settings.system is not None:
            checked = [{"role": "system", "content": settings.system}, *checked]
        return self._rendered(checked, settings)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text of n tokens has at most n times as many."""
        return max(map(len, self._tokenizer.vocabulary()), default=1)

    @property
    def fill_in_middle(self) -> FillInMiddle:
        """What makes prompts that fill in the middle. Raises ValueError where the vocabulary has no tokens for that."""
        if self._fim is None:
            raise ValueError(MISSING)
        return self._fim

    def ends_of(self, prompt: Seq[int]) -> frozenset[int]:
        """The tokens that end the answer to a prompt beside the model's end tokens: those of its family, where the
        prompt ends with the token after which the model fills in the middle."""
        fim = self._fim.tokens if self._fim is not None else None
        return fim.ends if fim is not None and prompt and prompt[-1] == fim.middle else frozenset()

    def encode_text(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text as it stands, with the special tokens that the tokenizer adds, or without them."""
        return self._encode(text, special_tokens)

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        with self._lock:
            return self._tokenizer.encode(text, special_tokens=special_tokens)

    def decode(self, tokens: Seq[int]) -> str:
        """The text of token ids, without special tokens. That of a single token, which streams ask for again and again,
        is kept."""
        if len(tokens) == 1 and tokens[0] in self._texts:
            return self._texts[tokens[0]]
        with self._lock:
            text = self._tokenizer.decode(tokens)
        if len(tokens) == 1:
            self._texts[tokens[0]] = text
        return text

    def _rendered(self, messages: list[dict[str, Any]], settings: Settings) -> tuple[int, ...]:
        variables = {**settings.template, "tools": list(settings.tools)} if settings.tools else settings.template
        with self._lock:
            try:
                return tuple(self._tokenizer.render(messages, variables))
            except Exception as error:  # a template is a program in the checkpoint and may raise anything
                raise ValueError(f"the chat template cannot render these messages: {error}") from error


def prompts_in(given: Any) -> tuple[list[Prompt], bool]:
    """The argument of `generate` as a list of prompts, and whether there were several: a list, a generator, a column
    of a table or another iterable of prompts, rather than a single one. Raises ValueError for rows of a table."""
    if isinstance(given, list | tuple) and not given:
        return [], True
    single = isinstance(given, str | bytes | Mapping | set | frozenset) or not isinstance(given, Iterable)
    if single or as_integers(given) is not None or len(getattr(given, "shape", ())) > 1:
        return [given], False
    items = given if isinstance(given, list | tuple) else _without_rows(list(given))
    if not items or _is_prompt(items[0]):
        return list(items), True
    return [items], False


def prompt_list(given: Any) -> list[Prompt]:
    """Any iterable of prompts as a list. Raises ValueError for a single prompt, rows of a table or another value."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise wrong("prompts", given, "a list of prompts")
    return _without_rows(list(given))


def _without_rows(items: list[Any]) -> list[Any]:
    """The items of an iterable. Raises ValueError where they are rows, such as those of a dataset."""
    if items and isinstance(items[0], Mapping) and "role" not in items[0]:
        columns = ", ".join(map(str, items[0]))
        raise ValueError(f"rows are no prompts: give one column, such as rows['prompt'] (columns: {columns})")
    return items


def map_prompts(prompts: Seq[P], make: Callable[[P], T]) -> list[T]:
    """Apply `make` to every prompt; a ValueError of it names the index of the prompt."""
    results = []
    for number, prompt in enumerate(prompts, 1):
        try:
            results.append(make(prompt))
        except ValueError as error:
            if len(prompts) == 1:
                raise
            raise ValueError(f"prompt {number} of {len(prompts)}: {error}") from error
    return results


def checked_prompt(prompt: Any) -> str | list[dict[str, Any]] | tuple[int, ...]:
    """A prompt as a string, as messages with text content, or as token ids. Raises ValueError where it is invalid."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        raise ValueError("a single message is not a prompt: put it into a list")  # noqa: TRY004
    ids = as_integers(prompt)
    if ids is not None and not isinstance(prompt, set | frozenset):
        return tuple(ids)
    shape = getattr(prompt, "shape", ())
    if len(shape) > 1:
        raise ValueError(f"token ids must be one-dimensional, not of shape {list(shape)}: pass one row of them")
    if not isinstance(prompt, list | tuple):
        raise wrong("a prompt", prompt, EXPECTED)
    if isinstance(prompt[0], Mapping):
        return [_message(message, f"message {n} of {len(prompt)}") for n, message in enumerate(prompt, 1)]
    if as_integer(prompt[0]) is not None:
        at = next(n for n, token in enumerate(prompt) if as_integer(token) is None)
        raise wrong(f"item {at + 1} of a list of token ids", prompt[at], "an integer")
    raise wrong("a prompt", prompt, EXPECTED)


def _is_prompt(item: Any) -> bool:
    """Whether an item of a list is a prompt, rather than a message or token of a single prompt."""
    return isinstance(item, str | Gap | list | tuple) or len(getattr(item, "shape", ())) > 0


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise wrong(where, message, "a mapping with `role` and `content`")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        problem = "has no role" if role is None else f"has the role {role!r}"
        raise ValueError(f"{where} {problem}; roles: {', '.join(ROLES)}")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return dict(message)
    if content is None:
        raise ValueError(f"{where} has no content: it needs a string or a list of text parts")
    return {**message, "content": _text(content, f"the content of {where}")}


def _text(content: Any, where: str) -> str:
    """The text of a message: a string, or the concatenated text parts of the OpenAI format."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise wrong(where, content, "a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is not None and kind != "text":
            raise ValueError(f"{where} has a part of type {kind!r}: only text is supported")
        if kind is None or not isinstance(part.get("text"), str):
            raise wrong(f"a part of {where}", part, 'like {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)
