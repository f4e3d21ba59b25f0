"""A conversation: system message and turns, and its form on disk."""

from __future__ import annotations

import json
from pathlib import Path

from orthrus.cli._chat.answers import Message
from orthrus.prompt_files import decode_utf8, lines, messages_of


class Conversation:
    """Turns of user and assistant in alternation; a question is part of it once it has an answer."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[Message] = []
        self.left_out = 0
        """The oldest turns that are no longer sent, because the context is full. They stay part of the conversation."""

    def asking(self, question: str) -> list[Message]:
        """The messages to send for a question. The conversation stays as it is."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns[self.left_out :], {"role": "user", "content": question}]

    def leave_out_oldest(self) -> bool:
        """Send one exchange less. Returns whether there was one."""
        sent = range(self.left_out, len(self.turns))
        if not sent:
            return False
        self.left_out = next((at for at in sent[1:] if self.turns[at]["role"] == "user"), len(self.turns))
        return True

    def add(self, question: str, answer: str) -> None:
        """Append an exchange."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> str | None:
        """Remove the last exchange. Returns its question; None where there is none."""
        users = [at for at, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not users:
            return None
        question = self.turns[users[-1]]["content"]
        del self.turns[users[-1] :]
        self.left_out = 0
        return question

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns, self.left_out = [], 0

    def save(self, path: Path) -> None:
        """Write it as one line of JSON, which `orthrus generate --file` and `--load` read. Raises OSError."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        path.write_text(json.dumps({"messages": [*opening, *self.turns]}, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Replace it by that of a file. Raises OSError or ValueError, and then changes nothing.

        A file of prompts, which no answer follows, is no conversation; nor is one of several, such as training data.
        """
        data = path.read_bytes()
        if not decode_utf8(data, str(path)).strip():
            raise ValueError(f"{path}: empty")
        (number, record), *others = lines(data, str(path))
        if others:
            raise ValueError(f"{path} holds {1 + len(others)} records; give one conversation a file of its own")
        messages = messages_of(record, f"{path}, line {number}")
        systems = [message["content"] for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        if turns[-1]["role"] == "user":
            turns.pop()
        if not any(turn["role"] == "assistant" for turn in turns):
            raise ValueError(f"{path} holds a prompt and no answer, so it is no conversation: /save writes one")
        if turns[0]["role"] != "user":
            raise ValueError(f"{path} does not begin with a question, so it is no conversation: /save writes one")
        self.system = "\n".join(systems) or None
        self.turns, self.left_out = turns, 0
