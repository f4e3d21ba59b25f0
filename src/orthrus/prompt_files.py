"""JSONL prompt files: records with `prompt`, perhaps a `suffix`, `messages` or ShareGPT `conversations`.

Errors name file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Gap:
    """A prompt that fills in the middle: the answer goes between the two texts."""

    prefix: str
    suffix: str


def lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL text with their line numbers; empty lines are skipped. Raises ValueError."""
    for number, line in enumerate(decode_utf8(data, where).split("\n"), 1):
        if line.strip():
            yield number, parse_object(line, f"{where}, line {number}")


def decode_utf8(data: bytes, where: str) -> str:
    """Decode UTF-8. Raises ValueError naming the first invalid byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 (byte {error.start} is {data[error.start]:#04x})") from error


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError that begins with `where`."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half of a surrogate pair, which is not valid text") from error
    except (ValueError, RecursionError) as error:  # includes too deep nesting and integers with too many digits
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object")  # noqa: TRY004
    return value


def prompt_of(record: dict[str, Any], where: str) -> Any:
    """The prompt of a record (a string, or with a suffix a `Gap`), or its messages. Raises ValueError that begins with
    `where`."""
    prompt, suffix = record.get("prompt"), record.get("suffix")
    if isinstance(prompt, str):
        if suffix is not None and not isinstance(suffix, str):
            raise ValueError(f"{where}: `suffix` must be a string")
        return prompt if suffix is None else Gap(prompt, suffix)
    for field, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = record.get(field)
        if isinstance(turns, list) and turns:
            return [_message(turn, role, content, f"{where}, turn {n}") for n, turn in enumerate(turns, 1)]
    raise ValueError(
        f"{where}: needs `prompt` (a string), `messages` (a list of objects with role and content) or `conversations`"
        f" (ShareGPT: from and value), but has {', '.join(sorted(record)) or 'no fields'}"
    )


def prompts_in(data: bytes, where: str) -> list[Any]:
    """The prompts of a JSONL text. Raises ValueError naming the line that is wrong, or where there are no prompts."""
    prompts = [prompt_of(record, f"{where}, line {number}") for number, record in lines(data, where)]
    if not prompts:
        raise ValueError(f"{where}: no prompts in it")
    return prompts


def messages_of(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    """The messages of a record; a prompt becomes a user turn. Raises ValueError where no user turn has text."""
    prompt = prompt_of(record, where)
    if isinstance(prompt, Gap):
        raise ValueError(f"{where}: a prompt with a suffix fills in the middle of a text, so it is no conversation")  # noqa: TRY004
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise ValueError(f"{where}: there is no user turn with text")
    return messages


def _message(turn: Any, role: str, content: str, where: str) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get(role), str) or not isinstance(turn.get(content), str):
        raise ValueError(f"{where}: needs `{role}` and `{content}`, both strings")  # noqa: TRY004
    if role == "role":
        return {"role": turn[role], "content": turn[content]}
    if turn[role] not in SHAREGPT_ROLES:
        raise ValueError(f"{where}: `from` is {turn[role]!r}; expected one of {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[turn[role]], "content": turn[content]}
