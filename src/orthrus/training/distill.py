"""Conversations in which the backbone itself answers, and asks too where nobody else does: what a view is trained on.

Records are written in shards, each atomically, and each a pure function of the settings and the shards before it. So a
run that was killed goes on after its last complete shard, and the files end up the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from orthrus.config import DistillConfig
from orthrus.file_cache import save_bytes, save_json, write_atomically
from orthrus.training import chat
from orthrus.training.chat import Message
from orthrus.training.prompts import Conversation, digest, fingerprint, word_runs
from orthrus.training.shards import MANIFEST, DamagedShardError, read_manifest, read_shard


@dataclass(frozen=True)
class Question:
    """What the backbone is asked to continue: token ids, the seed of its noise, and how."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What it said, end token included, and whether it ended by itself (`stop`) or by `length`."""

    tokens: list[int]
    text: str
    finish_reason: str


Respond = Callable[[list[Question]], Iterable[tuple[int, Reply]]]
"""Decodes questions side by side, giving (index, reply) in any order."""


@dataclass(frozen=True)
class Shard:
    """A complete shard: its entry in the manifest, the prompts dealt with up to its end, and whether an earlier run
    wrote it."""

    entry: dict[str, Any]
    prompts: int
    found: bool


@dataclass
class Distillation:
    """One run into `directory`, from given conversations or, without any, from user turns the backbone writes.

    `backbone` is what the manifest says of it; `excluded` are runs of 13 words that no prompt may contain; `progressed`
    is told how many prompts are dealt with as they are, those of an unfinished shard included.
    """

    directory: Path
    config: DistillConfig
    tokenizer: PreTrainedTokenizerBase
    end_token_ids: frozenset[int]
    backbone: dict[str, Any]
    respond: Respond
    excluded: frozenset[tuple[str, ...]] = frozenset()
    progressed: Callable[[int], None] = lambda _: None
    _seen: set[str] = field(default_factory=set)
    _done: int = 0

    def run(self, given: list[Conversation] | None, count: int) -> Iterator[Shard]:
        """Write all shards that are missing or damaged, yielding each one as it is complete, finished ones too.

        `count` is the number of prompts tried. Raises ValueError where the directory was begun with other settings.
        """
        manifest = self._open(given, count)
        for index, start in enumerate(range(0, count, self.config.shard_size)):
            numbers = range(start, min(start + self.config.shard_size, count))
            self._done = numbers.start
            found = entry = self._finished(manifest["shards"][index : index + 1])
            if entry is None:
                entry = self._write(index, self._ask(numbers) if given is None else [given[n] for n in numbers])
                manifest["shards"][index : index + 1] = [entry]
                write_atomically(self.directory, {MANIFEST: lambda path: save_json(path, manifest)})
            yield Shard(entry, numbers.stop, found is not None)

    def _finished(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The entry of a shard that is there and whole; its prompts are then known."""
        try:
            for entry in entries:
                self._seen.update(fingerprint(record["messages"]) for record in read_shard(self.directory, entry))
                return entry
        except DamagedShardError:
            return None
        return None

    def _open(self, given: list[Conversation] | None, count: int) -> dict[str, Any]:
        """The manifest of the directory, new or as an earlier run left it."""
        prompts = None if given is None else digest([asdict(item) for item in given])
        settings = {**asdict(self.config), "count": count, "prompts_sha256": prompts}
        settings["excluded_sha256"] = digest(sorted(self.excluded)) if self.excluded else None
        fresh = {"format": 1, "backbone": self.backbone, "settings": json.loads(json.dumps(settings)), "shards": []}
        path = self.directory / MANIFEST
        if not path.exists():
            write_atomically(self.directory, {MANIFEST: lambda staged: save_json(staged, fresh)})
            return fresh
        found = read_manifest(self.directory)
        if found["backbone"]["sha256"] != self.backbone["sha256"]:
            raise ValueError(f"{path}: these shards were written by another backbone ({found['backbone']['id']})")
        changed = [k for k, v in fresh["settings"].items() if found["settings"].get(k) != v]
        if changed:
            was = ", ".join(f"{k} was {found['settings'].get(k)!r}" for k in changed)
            raise ValueError(f"{path}: begun with other settings ({was}); use them again, or another directory")
        return found

    def _ask(self, numbers: range) -> list[Conversation]:
        """User turns in the backbone's own words, one for each number."""
        config, questions = self.config, []
        for number in numbers:
            words = config.topics[number % len(config.topics)] if config.topics else ""
            start = chat.opening(self.tokenizer, config.system, words)
            questions.append(
                Question(
                    tuple(start.tokens), seed_of(config.seed, f"self-{number}", -1), config.prompt_temperature,
                    config.top_p, config.max_prompt_tokens, (start.end_token_id,),
                )
            )  # fmt: skip
        written = {}
        for index, reply in self.respond(questions):
            if reply.finish_reason == "stop":
                words = config.topics[numbers[index] % len(config.topics)] if config.topics else ""
                written[index] = self._turn((words + reply.text).strip())
        return [Conversation(f"self-{numbers[i]}", written.get(i, [])) for i in range(len(numbers))]

    def _turn(self, text: str) -> list[Message]:
        user = [{"role": "user", "content": text}] if text else []
        return [{"role": "system", "content": self.config.system}, *user] if self.config.system is not None else user

    def _write(self, index: int, conversations: list[Conversation]) -> dict[str, Any]:
        kept, dropped = self._select(conversations)
        self._deal_with(len(conversations) - len(kept))
        answered = self._answer(kept)
        dropped["unanswered or too long"] = len(kept) - len(answered)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in answered).encode()
        name = f"shard-{index:05d}.jsonl"
        write_atomically(self.directory, {name: lambda path: save_bytes(path, lines)})
        return {
            "file": name,
            "sha256": hashlib.sha256(lines).hexdigest(),
            "records": len(answered),
            "answer_tokens": sum(end - start for record in answered for start, end in record["spans"]),
            "dropped": {reason: number for reason, number in sorted(dropped.items()) if number},
        }

    def _select(self, conversations: list[Conversation]) -> tuple[list[Conversation], Counter[str]]:
        kept, dropped = [], Counter[str]()
        for item in conversations:
            if not any(m["role"] == "user" for m in item.messages):
                dropped["no question"] += 1
            elif (mark := fingerprint(item.messages)) in self._seen:
                dropped["duplicate"] += 1
            elif any(not self.excluded.isdisjoint(word_runs(m["content"])) for m in item.messages):
                dropped["excluded"] += 1
            else:
                self._seen.add(mark)
                kept.append(item)
        return kept, dropped

    def _answer(self, conversations: list[Conversation]) -> list[dict[str, Any]]:
        """Every user turn answered in order; conversations whose next prompt would be too long end before it."""
        config = self.config
        states: list[dict[str, Any]] = [{"id": c.id, "messages": []} for c in conversations]
        ahead = [list(c.messages) for c in conversations]
        while True:
            asked, questions = [], []
            for number, (state, turns) in enumerate(zip(states, ahead, strict=True)):
                history = state["messages"] + _until_user(turns)
                if len(history) == len(state["messages"]):
                    continue
                prompt = chat.encode(self.tokenizer, history, self.end_token_ids, reply=True)
                if len(prompt.tokens) > config.max_prompt_tokens:
                    turns.clear()
                    self._deal_with(1)
                    continue
                state["messages"] = history
                seed = seed_of(config.seed, state["id"], len(history))
                asked.append((number, prompt))
                questions.append(
                    Question(tuple(prompt.tokens), seed, config.temperature, config.top_p, config.max_new_tokens)
                )
            if not questions:
                return [state for state in states if "tokens" in state]
            for index, reply in self.respond(questions):
                number, prompt = asked[index]
                if reply.text.strip():
                    _enter(states[number], prompt, reply)
                else:
                    ahead[number].clear()
                    states[number]["messages"].pop()
                if reply.finish_reason != "stop":
                    ahead[number].clear()
                if not any(message["role"] == "user" for message in ahead[number]):
                    self._deal_with(1)

    def _deal_with(self, prompts: int) -> None:
        self._done += prompts
        self.progressed(self._done)


def _until_user(turns: list[Message]) -> list[Message]:
    """Take turns off the front, up to and with the next user's; none where no user speaks any more."""
    for n, message in enumerate(turns):
        if message["role"] == "user":
            taken, turns[:] = turns[: n + 1], turns[n + 1 :]
            return taken
    return []


def _enter(state: dict[str, Any], prompt: chat.Encoded, reply: Reply) -> None:
    state["messages"].append({"role": "assistant", "content": reply.text})
    state["tokens"] = [*prompt.tokens, *reply.tokens]
    state["spans"] = [*prompt.spans, (len(prompt.tokens), len(prompt.tokens) + len(reply.tokens))]
    state["finish_reason"] = reply.finish_reason


def seed_of(seed: int, identity: str, turn: int) -> int:
    """The seed of one reply: of the run, the record and the turn, whatever the batch and the order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{identity}/{turn}".encode()).digest()[:8])
