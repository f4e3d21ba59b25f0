"""What a model or a server gives to chat: an answer in parts, and its figures at the end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, str]


class AnswerError(Exception):
    """A turn failed. The message says why and what to do; the conversation goes on without the turn."""


class ContextFullError(AnswerError):
    """The conversation does not fit into the context, or leaves too little room for an answer. Raised before any part,
    and only where the conversation has earlier turns that can be left out."""


@dataclass(frozen=True)
class Figures:
    """Counts and seconds of one answer. `passes` is 0 where a server does not tell; `context` are the tokens that the
    model can hold, 0 where that is not known."""

    tokens: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    finish_reason: str | None = None
    seed: int | None = None
    context: int = 0

    @property
    def fills_context(self) -> bool:
        """Whether the answer ended because the context was full."""
        return self.finish_reason == "length" and 0 < self.context <= self.prompt_tokens + self.tokens

    def __str__(self) -> str:
        told = [f"{self.tokens} tokens"]
        if self.passes:
            told[0] += f" in {self.passes} passes ({self.tokens / self.passes:.2f} per pass)"
        if self.seconds:
            told.append(f"{self.tokens / self.seconds:.1f} tokens/s, the first after {self.first_seconds:.2f} s")
        if self.cached_tokens:
            told.append(f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens kept from before")
        if self.seed is not None:
            told.append(f"seed {self.seed}")
        if self.fills_context:
            told.append(f"ended because the context of {self.context} tokens is full (/undo or /clear makes room)")
        elif self.finish_reason == "length":
            told.append("ended at the maximum of tokens (/set max_new_tokens N)")
        return "; ".join(told)


@dataclass(frozen=True)
class Part:
    """Text of an answer, and whether it was an accepted draft.

    taken_back: how many characters of the text so far are no longer part of the answer; `note` says why. figures: on
    the last part, those of the answer.
    """

    text: str
    drafted: bool = False
    taken_back: int = 0
    note: str = ""
    figures: Figures | None = None


class Answerer(Protocol):
    """A model in this process, or a server."""

    name: str
    """For the first line of the chat."""
    defaults: Mapping[str, Any] | None
    """What holds for settings that are not given; None where a server decides."""
    interruptible: bool
    """Whether an answer may be left by an exception at any moment. If not, chat leaves it between two parts."""

    def answer(self, messages: list[Message], options: Mapping[str, Any]) -> Generator[Part, None, None]:
        """Answer a conversation. Closing the generator ends the work on it. Raises AnswerError where it fails, and
        ContextFullError where it would not with fewer turns."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...
