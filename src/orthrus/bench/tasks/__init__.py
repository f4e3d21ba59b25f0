"""Benchmark tasks: one file each, with its prompts as package data. Adding a task is adding a file.

A task file has `SOURCE`, `LICENCE` and `prompts()`. A path to a JSONL file of `prompt` or `messages` is a task too.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TaskPrompt:
    """One prompt: a string for the user's turn, or messages; `part` names the part of the task it belongs to."""

    id: str
    part: str
    prompt: Any


def names() -> list[str]:
    """The tasks there are, by listing this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, limit: int | None = None) -> list[TaskPrompt]:
    """The first `limit` prompts of a task (of every part alike, where it has parts), or of a JSONL file.

    Raises ValueError where there is no such task, with the list of tasks, or where the file is malformed.
    """
    if name in names():
        found = list(importlib.import_module(f"{__name__}.{name}").prompts())
    elif Path(name).is_file():
        found = [_from_file(name, number, record) for number, record in _lines(Path(name).read_bytes(), name)]
    else:
        raise ValueError(f"no task {name!r} and no such file; tasks: {', '.join(names())}")
    if not found:
        raise ValueError(f"{name}: no prompts in it")
    return found[:limit]


def records(file: str) -> Iterator[dict[str, Any]]:
    """The records of one of the shipped data files."""
    data = (resources.files(__name__) / "data" / file).read_bytes()
    for _, record in _lines(data, file):
        yield record


def _lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(decode_utf8(data, where).split("\n"), 1):
        if line.strip():
            yield number, parse_object(line, f"{where}, line {number}")


def decode_utf8(data: bytes, where: str) -> str:
    """Text. Raises ValueError naming the first byte that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 (byte {error.start} is {data[error.start]:#04x})") from error


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming `where` it should have been."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object")  # noqa: TRY004
    return value


def prompt_of(record: dict[str, Any], where: str) -> Any:
    """The prompt or the messages of a record. Raises ValueError naming `where` they are missing."""
    if isinstance(record.get("prompt"), str):
        return record["prompt"]
    messages = record.get("messages")
    if (
        isinstance(messages, list)
        and messages
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
    ):
        return messages
    raise ValueError(f"{where}: needs `prompt` (a string) or `messages` (a list of objects with role and content)")


def prompts_in(data: bytes, where: str) -> list[Any]:
    """The prompts of a JSONL text. Raises ValueError naming the line that is wrong, or that there is none."""
    found = [prompt_of(record, f"{where}, line {number}") for number, record in _lines(data, where)]
    if not found:
        raise ValueError(f"{where}: no prompts in it")
    return found


def _from_file(name: str, number: int, record: dict[str, Any]) -> TaskPrompt:
    return TaskPrompt(f"line {number}", Path(name).stem, prompt_of(record, f"{name}, line {number}"))
