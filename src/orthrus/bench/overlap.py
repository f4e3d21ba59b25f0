"""Which records of training data repeat a benchmark: 13 words in a row, or a whole prompt that is shorter
and equals one of the benchmark or how one begins."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from orthrus.bench import tasks
from orthrus.checkpoint.sources import read_config, read_tokenizer, resolve
from orthrus.prompt_files import Gap, lines
from orthrus.training.prompts import ROLES, conversations_in, excluded_ngrams, texts_of, word_ngrams
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


def records_in(path: Path, model: str | None = None) -> list[Record]:
    """The records of a JSONL file of prompts or conversations, which xz may compress, of a directory of distilled
    shards, or of a packed file of them. model: whose tokens a packed file has; None for the one that it names.

    Raises ValueError where it is none of these, or where the model is another one.
    """
    if (path / MANIFEST).exists():
        return [(record["id"], _asked(record["messages"])) for record in read_records(path)[1]]
    if not path.is_file():
        raise ValueError(f"{path}: no JSONL file, and no directory that `orthrus distill` wrote")
    data = path.read_bytes()
    if is_packed(path):
        data = _decompressed(path, data)
        if "tokens" in next((record for _, record in islice(lines(data, str(path)), 1, 2)), {}):
            return list(_from_tokens(path, model))
    return [(item.id, _asked(item.messages)) for item in conversations_in(data, str(path))]


def _decompressed(path: Path, data: bytes) -> bytes:
    try:
        return lzma.decompress(data)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path}: not compressed by xz, or damaged ({error})") from error


def _from_tokens(path: Path, model: str | None) -> Iterator[Record]:
    """The records of a packed file, whose texts are the turns between special tokens, without the names of roles."""
    manifest, records = read_records(path)
    wrote = manifest["backbone"]
    try:
        source = resolve(model or wrote["id"], None)
        text = read_tokenizer(source, read_config(source))
    except ValueError as error:
        raise ValueError(
            f"{path}: holds tokens of {wrote['id']}, whose tokenizer is needed: name that model with --model ({error})"
        ) from error
    if wrote.get("tokenizer_sha256", text.vocabulary_digest()) != text.vocabulary_digest():
        raise ValueError(f"{path}: holds tokens of {wrote['id']}, whose vocabulary is another than that of {source.id}")
    special = set(text.full().get_added_vocab().values())
    for record in records:
        answered = {place for begin, end in record["spans"] for place in range(begin, end)}
        asked = [token for place, token in enumerate(record["tokens"]) if place not in answered]
        turns = [list(turn) for is_special, turn in groupby(asked, special.__contains__) if not is_special]
        yield record["id"], [_without_role(text.decode(turn)) for turn in turns]


def _without_role(turn: str) -> str:
    role, _, rest = turn.partition("\n")
    return rest if role.strip() in ROLES else turn


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
