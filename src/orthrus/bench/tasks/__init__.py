"""Benchmark tasks: one module each, with its prompts as package data. To add a task, add a module.

A task file has `SOURCE`, `LICENCE` and `prompts()`. A path to a JSONL file of `prompt` or `messages` is a task too, and
so are distilled records: choices between views are made on records that neither was trained on.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from orthrus.prompt_files import lines, prompt_of
from orthrus.training.shards import PACKED, is_packed, read_records

ANSWER = "# the answer goes here"


@dataclass(frozen=True)
class TaskPrompt:
    """One prompt: a string for the user turn, a gap to fill in, messages, or token ids. `part` names its part of the
    task.

    number: the right answer, if it is a number; program: Python that fails if the code inserted at `ANSWER` is wrong.
    """

    id: str
    part: str
    prompt: Any
    number: str | None = None
    program: str | None = None


def names() -> list[str]:
    """The names of all tasks, from the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, limit: int | None = None) -> list[TaskPrompt]:
    """The first `limit` prompts of a task, a JSONL file or a directory of distilled records. Parts are interleaved.

    Raises ValueError with the list of tasks if there is no such task or file, or if the file is malformed.
    """
    if name in names():
        loaded = list(importlib.import_module(f"{__name__}.{name}").prompts())
    elif Path(name).is_dir() or is_packed(Path(name)):
        loaded = list(_from_records(Path(name)))
    elif Path(name).is_file():
        loaded = [_from_file(name, number, record) for number, record in lines(Path(name).read_bytes(), name)]
    else:
        raise ValueError(f"no task {name!r} and no such file; tasks: {', '.join(names())}")
    if not loaded:
        raise ValueError(f"{name}: no prompts in it")
    return loaded[:limit]


def records(file: str) -> Iterator[dict[str, Any]]:
    """The records of one of the shipped data files."""
    data = (resources.files(__name__) / "data" / file).read_bytes()
    for _, record in lines(data, file):
        yield record


def _from_records(path: Path) -> Iterator[TaskPrompt]:
    """The prompts of distilled records: the tokens before the first answer."""
    _, distilled = read_records(path)
    for record in distilled:
        yield TaskPrompt(record["id"], path.name.removesuffix(PACKED), record["tokens"][: record["spans"][0][0]])


def _from_file(name: str, number: int, record: dict[str, Any]) -> TaskPrompt:
    """A line of a file: ours, or as AIME (`problem`, `answer`) and LiveCodeBench (`question_content`) are given out."""
    where, part = f"line {number}", Path(name).stem
    for key in ("problem", "question_content"):
        if isinstance(record.get(key), str):
            answer = record.get("answer")
            return TaskPrompt(where, part, record[key], number=None if answer is None else str(answer))
    return TaskPrompt(where, part, prompt_of(record, f"{name}, {where}"))
