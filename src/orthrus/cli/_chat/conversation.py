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

    def asking(self, question: str) -> list[Message]:
        """The messages to send for a question. The conversation stays as it is."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns, {"role": "user", "content": question}]

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
        return question

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def save(self, path: Path) -> None:
        """Write it as one line of JSON, which `orthrus generate --file` and `--load` read. Raises OSError."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        path.write_text(json.dumps({"messages": [*opening, *self.turns]}, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Replace it by that of a file. Raises OSError or ValueError, and then changes nothing."""
        data = path.read_bytes()
        if not decode_utf8(data, str(path)).strip():
            raise ValueError(f"{path}: empty")
        number, record = next(lines(data, str(path)))
        messages = messages_of(record, f"{path}, line {number}")
        systems = [message["content"] for message in messages if message["role"] == "system"]
        self.system = "\n".join(systems) or None
        self.turns = [message for message in messages if message["role"] != "system"]
        if self.turns[-1]["role"] == "user":
            self.turns.pop()
