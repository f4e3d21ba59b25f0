"""Training data for a diffusion view: conversations answered by the backbone, with given or self-written user turns.

Records are written in shards. A shard is written atomically and is a pure function of the settings and the shards
before it, so a killed run resumes after its last complete shard and produces the same files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from orthrus.file_cache import save_bytes, save_json, write_atomically
from orthrus.training import chat
from orthrus.training.chat import Message
from orthrus.training.config import DistillConfig
from orthrus.training.prompts import Conversation, RawText, digest, fingerprint, word_ngrams
from orthrus.training.shards import MANIFEST, DamagedShardError, read_manifest, read_shard


@dataclass(frozen=True)
class Question:
    """A generation request to the backbone: token ids, the seed of the sampling noise, and sampling settings."""

    prompt: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reply:
    """The generated tokens, end token included, their text, and why generation ended (`stop` or `length`)."""

    tokens: list[int]
    text: str
    finish_reason: str


Respond = Callable[[list[Question]], Iterable[tuple[int, Reply]]]
"""Decodes questions in batches and yields (index, reply) in any order."""


EncodeRaw = Callable[[RawText], tuple[Sequence[int], frozenset[int]]]
"""Gives the token ids of a text, and the tokens that end its answer beside the end tokens of the model."""


@dataclass(frozen=True)
class Shard:
    """A complete shard.

    entry: its entry in the manifest; prompts: finished prompts up to and including this shard; existing: whether an
    earlier run wrote it.
    """

    entry: dict[str, Any]
    prompts: int
    existing: bool


@dataclass
class Distillation:
    """One distillation run into `directory`.

    backbone: its entry in the manifest. excluded: 13-grams of words; prompts that contain one are dropped. progressed:
    called with the number of finished prompts, including those of the shard in progress. encode_raw: for texts without
    a chat template.
    """

    directory: Path
    config: DistillConfig
    tokenizer: PreTrainedTokenizerBase
    end_token_ids: frozenset[int]
    backbone: dict[str, Any]
    respond: Respond
    excluded: frozenset[tuple[str, ...]] = frozenset()
    progressed: Callable[[int], None] = lambda _: None
    encode_raw: EncodeRaw | None = None
    _fingerprints: set[str] = field(default_factory=set)
    _done: int = 0

    def run(self, given: list[Conversation] | None, count: int) -> Iterator[Shard]:
        """Write all missing or damaged shards; yield every shard once complete, including those of earlier runs.

        The user turns are those of `given` or, if it is None, written by the backbone. `count` is the number of prompts
        tried. Raises ValueError where the directory belongs to a run with other settings.
        """
        manifest = self._open(given, count)
        for index, start in enumerate(range(0, count, self.config.shard_size)):
            indices = range(start, min(start + self.config.shard_size, count))
            self._done = indices.start
            existing = entry = self._existing(manifest["shards"][index : index + 1])
            if entry is None:
                entry = self._write(index, self._ask(indices) if given is None else [given[n] for n in indices])
                manifest["shards"][index : index + 1] = [entry]
                write_atomically(self.directory, {MANIFEST: lambda path: save_json(path, manifest)})
            yield Shard(entry, indices.stop, existing is not None)

    def _existing(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The entry of a shard that exists undamaged, or None; the fingerprints of its prompts are recorded.

        The records do not give them: prompts without an answer are not among them, nor are the turns after an answer
        that was cut off. Manifests of earlier versions have nothing else.
        """
        try:
            for entry in entries:
                records = read_shard(self.directory, entry)
                self._fingerprints.update(entry.get("asked", [fingerprint(record["messages"]) for record in records]))
                return entry
        except DamagedShardError:
            return None
        return None

    def _open(self, given: list[Conversation] | None, count: int) -> dict[str, Any]:
        """The manifest of the directory: a new one, or that of the run to resume."""
        prompts = None if given is None else digest([item.description for item in given])
        settings = {**asdict(self.config), "count": count, "prompts_sha256": prompts}
        settings["excluded_sha256"] = digest(sorted(self.excluded)) if self.excluded else None
        fresh = {"format": 1, "backbone": self.backbone, "settings": json.loads(json.dumps(settings)), "shards": []}
        path = self.directory / MANIFEST
        if not path.exists():
            write_atomically(self.directory, {MANIFEST: lambda staged: save_json(staged, fresh)})
            return fresh
        manifest = read_manifest(self.directory)
        before = manifest["backbone"]
        if before["sha256"] != self.backbone["sha256"]:
            raise ValueError(f"{path}: these shards were written by another backbone ({before['id']})")
        if (dtype := before.get("dtype")) != self.backbone.get("dtype"):
            raise ValueError(f"{path}: these shards were written in {dtype}; use it again, or another directory")
        changed = [k for k, v in fresh["settings"].items() if manifest["settings"].get(k) != v]
        if changed:
            was = ", ".join(f"{k} was {manifest['settings'].get(k)!r}" for k in changed)
            raise ValueError(f"{path}: begun with other settings ({was}); use them again, or another directory")
        return manifest

    def _ask(self, indices: range) -> list[Conversation]:
        """User turns written by the backbone, one per index."""
        config, questions = self.config, []
        for index in indices:
            words = config.topics[index % len(config.topics)] if config.topics else ""
            prefix = chat.user_turn_prefix(self.tokenizer, config.system, words)
            questions.append(
                Question(
                    tuple(prefix.tokens), seed_of(config.seed, f"self-{index}", -1), config.prompt_temperature,
                    config.top_p, config.max_prompt_tokens, (prefix.end_token_id,),
                )
            )  # fmt: skip
        written = {}
        for n, reply in self.respond(questions):
            if reply.finish_reason == "stop":
                words = config.topics[indices[n] % len(config.topics)] if config.topics else ""
                written[n] = self._turn((words + reply.text).strip())
        return [Conversation(f"self-{index}", written.get(n, [])) for n, index in enumerate(indices)]

    def _turn(self, text: str) -> list[Message]:
        user = [{"role": "user", "content": text}] if text else []
        return [{"role": "system", "content": self.config.system}, *user] if self.config.system is not None else user

    def _write(self, index: int, conversations: list[Conversation]) -> dict[str, Any]:
        kept, dropped = self._select(conversations)
        self._count_finished(len(conversations) - len(kept))
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
            "dropped": {reason: prompts for reason, prompts in sorted(dropped.items()) if prompts},
            "asked": [fingerprint(item.messages) for item in kept],
        }

    def _select(self, conversations: list[Conversation]) -> tuple[list[Conversation], Counter[str]]:
        kept, dropped = [], Counter[str]()
        for item in conversations:
            if not any(m["role"] == "user" for m in item.messages):
                dropped["no question"] += 1
            elif (identity := fingerprint(item.messages)) in self._fingerprints:
                dropped["duplicate"] += 1
            elif any(not self.excluded.isdisjoint(word_ngrams(m["content"])) for m in item.messages):
                dropped["excluded"] += 1
            else:
                self._fingerprints.add(identity)
                kept.append(item)
        return kept, dropped

    def _answer(self, conversations: list[Conversation]) -> list[dict[str, Any]]:
        """Answer all user turns in order; a conversation ends before a turn whose prompt would be too long."""
        config = self.config
        states: list[dict[str, Any]] = [{"id": c.id, "messages": []} for c in conversations]
        pending = [list(c.messages) for c in conversations]
        while True:
            asked, questions = [], []
            for number, (state, turns) in enumerate(zip(states, pending, strict=True)):
                history = state["messages"] + _pop_through_user_turn(turns)
                if len(history) == len(state["messages"]):
                    continue
                prompt, ends = self._prompt(conversations[number], history)
                if len(prompt.tokens) > config.max_prompt_tokens:
                    turns.clear()
                    self._count_finished(1)
                    continue
                state["messages"] = history
                seed = seed_of(config.seed, state["id"], len(history))
                asked.append((number, prompt))
                questions.append(
                    Question(tuple(prompt.tokens), seed, config.temperature, config.top_p, config.max_new_tokens, ends)
                )
            if not questions:
                return [state for state in states if "tokens" in state]
            for index, reply in self.respond(questions):
                number, prompt = asked[index]
                if reply.text.strip():
                    _append_reply(states[number], prompt, reply)
                else:
                    pending[number].clear()
                    states[number]["messages"].pop()
                if reply.finish_reason != "stop":
                    pending[number].clear()
                if not any(message["role"] == "user" for message in pending[number]):
                    self._count_finished(1)

    def _prompt(self, asked: Conversation, history: list[Message]) -> tuple[chat.Encoded, tuple[int, ...]]:
        """The tokens of a prompt, and those that end its answer beside the end tokens of the model."""
        if asked.raw is None:
            return chat.encode(self.tokenizer, history, self.end_token_ids, reply=True), ()
        assert self.encode_raw is not None
        tokens, ends = self.encode_raw(asked.raw)
        return chat.Encoded(list(tokens), []), tuple(sorted(ends))

    def _count_finished(self, prompts: int) -> None:
        self._done += prompts
        self.progressed(self._done)


def _pop_through_user_turn(turns: list[Message]) -> list[Message]:
    """Remove and return the turns up to and including the next user turn; none if no user turn is left."""
    for n, message in enumerate(turns):
        if message["role"] == "user":
            taken, turns[:] = turns[: n + 1], turns[n + 1 :]
            return taken
    return []


def _append_reply(state: dict[str, Any], prompt: chat.Encoded, reply: Reply) -> None:
    state["messages"].append({"role": "assistant", "content": reply.text})
    state["tokens"] = [*prompt.tokens, *reply.tokens]
    state["spans"] = [*prompt.spans, (len(prompt.tokens), len(prompt.tokens) + len(reply.tokens))]
    state["finish_reason"] = reply.finish_reason


def seed_of(seed: int, identity: str, turn: int) -> int:
    """The seed of one reply, derived from run, record and turn alone, so batching and order do not change it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{identity}/{turn}".encode()).digest()[:8])
