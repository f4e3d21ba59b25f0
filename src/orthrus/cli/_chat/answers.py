"""What a model or a server gives to chat: an answer in parts, and its figures at the end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, str]


class AnswerError(Exception):
    """A turn failed. The message says why and what to do; the conversation goes on without the turn."""


@dataclass(frozen=True)
class Figures:
    """Counts and seconds of one answer. `passes` is 0 where a server does not tell."""

    tokens: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    finish_reason: str | None = None
    seed: int | None = None

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
        if self.finish_reason == "length":
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
    interruptible: bool
    """Whether an answer may be left by an exception at any moment. If not, chat leaves it between two parts."""

    def answer(self, messages: list[Message], options: Mapping[str, Any]) -> Generator[Part, None, None]:
        """Answer a conversation. Closing the generator ends the work on it. Raises AnswerError where it fails."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...
