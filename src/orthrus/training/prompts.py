"""Prompts for distillation: reading, deduplication, and n-grams to exclude benchmark prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orthrus import prompt_files
from orthrus.training.chat import Message

NGRAM_WORDS = 13
"""Consecutive words that a prompt may not share with an excluded text. A shorter prompt may not equal one."""
BEGINNING_WORDS = 5
"""A shorter prompt may not equal the beginning of an excluded text either, if it has so many words."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class RawText:
    """A text that goes to the model without a chat template. suffix: what stands after the gap that the model fills;
    None where it continues the text."""

    prefix: str
    suffix: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A record to answer: its id and its turns, without those of the assistant. Of a raw text, `messages` hold the
    words, by which it is compared with others."""

    id: str
    messages: list[Message]
    raw: RawText | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Its content, in which records of chats are what they were in earlier versions."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def conversations_in(data: bytes, where: str) -> list[Conversation]:
    """The records of a JSONL text, without assistant turns (the backbone writes the answers). Raises ValueError.

    A record of `prompt` and `suffix` fills in the middle; one of `prompt` and `raw` (true) continues the text.
    """
    conversations = []
    for number, record in prompt_files.lines(data, where):
        identity, place = record.get("id"), f"{where}, line {number}"
        name = str(identity) if isinstance(identity, str | int) else f"line-{number}"
        raw = _raw_text(record, place)
        if raw is not None:
            conversations.append(
                Conversation(name, [{"role": "user", "content": raw.prefix + (raw.suffix or "")}], raw)
            )
            continue
        messages = prompt_files.messages_of(record, place)
        unknown = next((message["role"] for message in messages if message["role"] not in ROLES), None)
        if unknown is not None:
            raise ValueError(f"{place}: the role {unknown!r} is unknown; roles: {', '.join(ROLES)}")
        conversations.append(Conversation(name, [message for message in messages if message["role"] != "assistant"]))
    if not conversations:
        raise ValueError(f"{where}: no records in it")
    return conversations


def _raw_text(record: dict[str, Any], where: str) -> RawText | None:
    """The text of a record with a `suffix`, or with `raw`; None for chats."""
    prefix, suffix = record.get("prompt"), record.get("suffix")
    if suffix is None and record.get("raw") is not True:
        return None
    if not isinstance(prefix, str) or not isinstance(suffix, str | None) or not (prefix + (suffix or "")).strip():
        raise ValueError(
            f"{where}: `suffix` and `raw` need a `prompt`; prompt and suffix are texts, and not both empty"
        )
    return RawText(prefix, suffix)


def word_ngrams(text: str, size: int = NGRAM_WORDS) -> set[tuple[str, ...]]:
    """All n-grams of `size` consecutive words, in lower case and without punctuation.

    A text with fewer words is one n-gram by itself, so that two short texts share one where they are equal.
    """
    words = _words(text)
    if not words:
        return set()
    return {tuple(words[n : n + size]) for n in range(max(1, len(words) - size + 1))}


def excluded_ngrams(text: str) -> set[tuple[str, ...]]:
    """The n-grams of a benchmark's text that no training prompt may have: `word_ngrams`, and how the text begins, as a
    benchmark may add tests to a short statement."""
    words = _words(text)
    beginnings = range(BEGINNING_WORDS, min(NGRAM_WORDS, len(words)))
    return word_ngrams(text) | {tuple(words[:count]) for count in beginnings}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


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
    """Sixteen hex digits that stand for the user turns, but for white space and case; other turns do not count."""
    return digest([" ".join(m["content"].lower().split()) for m in messages if m["role"] == "user"])[:16]
