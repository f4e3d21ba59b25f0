"""From prompts to token ids and back: strings, chat messages and token ids checked, the template applied, one lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from threading import Lock
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from orthrus.options import Settings, whole, whole_numbers, wrong

T = TypeVar("T")
Message = Mapping[str, Any]
"""`role` and `content`, a string or a list of OpenAI's text parts; what else it holds is for the chat template."""
Prompt = str | Seq[Message] | Seq[int]
ROLES = ("system", "user", "assistant", "tool")
EXPECTED = "a string, a list of messages, or a list of token ids"


class Tokenization:
    """A tokenizer that several threads may use at once.

    Tokenizers of `transformers` set padding and truncation on a shared object before they encode, which fails in one
    thread while another encodes; so every call holds a lock.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._lock = tokenizer, Lock()

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[int, ...]:
        """Token ids of a prompt: through the chat template where the tokenizer has one, unless `raw`.

        Raises ValueError where the prompt is none, or where the template refuses it.
        """
        found = checked_prompt(prompt)
        if isinstance(found, tuple):
            return found
        template = self._tokenizer.chat_template
        if isinstance(found, str) and (settings.raw or not template):
            if settings.system is not None:
                raise ValueError("this tokenizer has no chat template, so there is no place for a system message")
            with self._lock:
                return tuple(self._tokenizer(found).input_ids)
        if settings.raw:
            raise ValueError("raw continues a text as it is, and messages need the chat template: drop one of them")
        if not template:
            raise ValueError("messages need a chat template and this tokenizer has none; pass the prompt as a string")
        if isinstance(found, str):
            if not found.strip():
                raise ValueError("the prompt is empty")
            found = [{"role": "user", "content": found}]
        if settings.system is not None:
            found = [{"role": "system", "content": settings.system}, *found]
        return self._rendered(found, settings)

    def decode(self, tokens: Seq[int]) -> str:
        """Text of token ids, special tokens left out."""
        with self._lock:
            return self._tokenizer.decode(  # type: ignore[return-value]
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def _rendered(self, messages: list[dict[str, Any]], settings: Settings) -> tuple[int, ...]:
        with self._lock:
            try:
                ids = self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=True, return_dict=False, **settings.template
                )
            except Exception as error:  # a template is a program of the checkpoint, and may raise anything
                raise ValueError(f"the chat template cannot render these messages: {error}") from error
        return tuple(ids)


def prompts_in(given: Any) -> tuple[list[Prompt], bool]:
    """The prompts of what `generate` was given, and whether they were a list of prompts rather than one."""
    if isinstance(given, list | tuple) and (not given or _is_prompt(given[0])):
        return list(given), True
    return [given], False


def several(given: Any) -> list[Prompt]:
    """A list of prompts, from any iterable of them. Raises ValueError where it is a prompt itself, or none."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise wrong("prompts", given, "a list of prompts")
    return list(given)


def each_named(prompts: Seq[Prompt], make: Callable[[Prompt], T]) -> list[T]:
    """What `make` makes of every prompt; its ValueError says which of several was wrong."""
    made = []
    for number, prompt in enumerate(prompts, 1):
        try:
            made.append(make(prompt))
        except ValueError as error:
            if len(prompts) == 1:
                raise
            raise ValueError(f"prompt {number} of {len(prompts)}: {error}") from error
    return made


def checked_prompt(prompt: Any) -> str | list[dict[str, Any]] | tuple[int, ...]:
    """A prompt as a string, messages with plain text in them, or token ids. Raises ValueError where it is none."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        raise ValueError("a message alone is no prompt: put it into a list")  # noqa: TRY004
    ids = whole_numbers(prompt)
    if ids is not None and not isinstance(prompt, set | frozenset):
        return tuple(ids)
    shape = getattr(prompt, "shape", ())
    if len(shape) > 1:
        raise ValueError(f"token ids must be one-dimensional, not of shape {list(shape)}: pass one row of them")
    if not isinstance(prompt, list | tuple):
        raise wrong("a prompt", prompt, EXPECTED)
    if isinstance(prompt[0], Mapping):
        return [_message(message, f"message {n} of {len(prompt)}") for n, message in enumerate(prompt, 1)]
    if whole(prompt[0]) is not None:
        at = next(n for n, token in enumerate(prompt) if whole(token) is None)
        raise wrong(f"item {at + 1} of a list of token ids", prompt[at], "a whole number")
    raise wrong("a prompt", prompt, EXPECTED)


def _is_prompt(item: Any) -> bool:
    """Whether the first item of a list is a prompt of its own, not the first message or token of one."""
    return isinstance(item, str | list | tuple) or len(getattr(item, "shape", ())) > 0


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise wrong(where, message, "a mapping with `role` and `content`")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        shown = "has no role" if role is None else f"has the role {role!r}"
        raise ValueError(f"{where} {shown}; roles: {', '.join(ROLES)}")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return dict(message)
    if content is None:
        raise ValueError(f"{where} has no content: it needs a string or a list of text parts")
    return {**message, "content": _text(content, f"the content of {where}")}


def _text(content: Any, where: str) -> str:
    """The text of a message: a string, or OpenAI's text parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise wrong(where, content, "a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is not None and kind != "text":
            raise ValueError(f"{where} has a part of type {kind!r}: only text can be read")
        if kind is None or not isinstance(part.get("text"), str):
            raise wrong(f"a part of {where}", part, 'like {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)
