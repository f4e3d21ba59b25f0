"""Which records of training data repeat a benchmark: 13 words in a row, or a whole prompt that is shorter
and equals one of the benchmark or how one begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orthrus.bench import tasks
from orthrus.prompt_files import Gap
from orthrus.training.prompts import conversations_in, excluded_ngrams, texts_of, word_ngrams
from orthrus.training.shards import MANIFEST, is_packed, read_records

Record = tuple[str, list[str]]
"""The id of a record, and its texts: the turns of the user and of the system."""


@dataclass(frozen=True)
class Overlap:
    """What data shares with a task. prompts: those of the task; repeated: those of them that the data repeats; records:
    the ids of the records that do."""

    task: str
    prompts: int
    repeated: int
    records: list[str]


def records_in(path: Path) -> list[Record]:
    """The records of a JSONL file of prompts or conversations, or of a directory of distilled shards. Raises ValueError
    where it is neither, such as a packed file."""
    if is_packed(path):
        raise ValueError(f"{path} holds token ids and no texts: compare the directory that `orthrus pack` packed")
    if (path / MANIFEST).exists():
        return [(record["id"], _asked(record["messages"])) for record in read_records(path)[1]]
    if not path.is_file():
        raise ValueError(f"{path}: no JSONL file, and no directory that `orthrus distill` wrote")
    return [(item.id, _asked(item.messages)) for item in conversations_in(path.read_bytes(), str(path))]


def overlaps(records: Iterable[Record], names: Iterable[str]) -> Iterator[Overlap]:
    """What the records share with each task."""
    of_records = [(identity, set().union(*map(word_ngrams, texts))) for identity, texts in records]
    in_data = set().union(*(ngrams for _, ngrams in of_records))
    for name in names:
        of_prompts = [set().union(*map(excluded_ngrams, _texts(p.prompt))) for p in tasks.load(name)]
        shared = in_data & set().union(*of_prompts)
        yield Overlap(
            name,
            len(of_prompts),
            sum(not shared.isdisjoint(ngrams) for ngrams in of_prompts),
            [identity for identity, ngrams in of_records if not shared.isdisjoint(ngrams)],
        )


def _asked(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "assistant"]


def _texts(prompt: object) -> list[str]:
    """The texts of a prompt: a string, both sides of a gap, or messages."""
    if isinstance(prompt, Gap):
        return [prompt.prefix, prompt.suffix]
    if isinstance(prompt, list):
        return [message["content"] for message in prompt if isinstance(message, dict)]
    return list(texts_of(prompt))
