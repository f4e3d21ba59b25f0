"""Prompts for distillation: read, told apart from each other, and from benchmarks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orthrus import prompt_files
from orthrus.training.chat import Message

SHARED_WORDS = 13
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """A record to be answered: its id, and all its turns but the assistant's."""

    id: str
    messages: list[Message]


def conversations_in(data: bytes, where: str) -> list[Conversation]:
    """The records of a JSONL text, assistant turns left out (the backbone answers itself). Raises ValueError."""
    found = []
    for number, record in prompt_files.lines(data, where):
        messages = prompt_files.messages_of(record, f"{where}, line {number}")
        strange = next((message["role"] for message in messages if message["role"] not in ROLES), None)
        if strange is not None:
            raise ValueError(f"{where}, line {number}: the role {strange!r} is unknown; roles: {', '.join(ROLES)}")
        identity = record.get("id")
        found.append(
            Conversation(
                str(identity) if isinstance(identity, str | int) else f"line-{number}",
                [message for message in messages if message["role"] != "assistant"],
            )
        )
    if not found:
        raise ValueError(f"{where}: no records in it")
    return found


def word_runs(text: str, size: int = SHARED_WORDS) -> set[tuple[str, ...]]:
    """All runs of `size` words in a row, case and punctuation aside."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}


def texts_of(value: Any) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def digest(value: Any) -> str:
    """The sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fingerprint(messages: list[Message]) -> str:
    """The same for the same questions, white space and case aside; the assistant's turns do not count."""
    return digest([" ".join(m["content"].lower().split()) for m in messages if m["role"] == "user"])
