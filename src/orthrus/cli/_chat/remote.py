"""Answers from an OpenAI-compatible server, streamed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from time import perf_counter
from typing import Any

from orthrus.cli._chat.answers import AnswerError, ContextFullError, Figures, Message, Part
from orthrus.cli._server import ServerClient, ServerError

SERVER_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""Options that have another name in OpenAI's API."""
CONTEXT_FULL = "context_length_exceeded"
"""The code of OpenAI's API where a prompt is longer than the context."""


class RemoteAnswers:
    """A model of a server. Drafts are shown where the server is one of ours."""

    interruptible = True
    defaults: Mapping[str, Any] | None = None

    def __init__(self, client: ServerClient, model: str | None) -> None:
        """Chooses the first model listed where none is named. Raises ValueError where the server cannot be used."""
        self._client = client
        try:
            listed = client.models()
        except ServerError as error:
            raise ValueError(str(error)) from error
        names = [str(entry["id"]) for entry in listed]
        if model is None and not names:
            raise ValueError(f"{client.url} lists no models; name one with --model")
        self._model = model or names[0]
        entry = next((entry for entry in listed if entry["id"] == self._model), {})
        self._drafts = entry.get("owned_by") == "orthrus"
        self._context = int(entry.get("max_model_len") or 0)
        self.name = f"{self._model} at {client.url}"

    def answer(self, messages: list[Message], options: Mapping[str, Any]) -> Generator[Part, None, None]:
        """Stream an answer. Options that are not given are left to the server."""
        streaming = {"include_usage": True, **({"include_drafts": True} if self._drafts else {})}
        chosen = {SERVER_NAMES.get(name, name): value for name, value in options.items()}
        body = {"model": self._model, "messages": messages, **chosen, "stream": True, "stream_options": streaming}
        counted = _Counted(self._context)
        try:
            for chunk in self._client.stream("/v1/chat/completions", body):
                yield from counted.parts(chunk)
        except ServerError as error:
            asked = sum(message["role"] == "user" for message in messages)
            kind = ContextFullError if error.code == CONTEXT_FULL and asked > 1 else AnswerError
            raise kind(str(error)) from error
        yield Part("", figures=counted.figures())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Counted:
    """The figures of a stream, counted as its chunks come."""

    def __init__(self, context: int) -> None:
        self._started, self._context = perf_counter(), context
        self._first = self._seconds = 0.0
        self._usage: dict[str, Any] = {}
        self._chunks = self._passes = 0
        self._finish: str | None = None

    def parts(self, chunk: dict[str, Any]) -> Iterator[Part]:
        """The text of a chunk."""
        choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
        delta = choice.get("delta") or {}
        text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        self._finish = choice.get("finish_reason") or self._finish
        self._usage = chunk.get("usage") or self._usage
        self._seconds = perf_counter() - self._started
        if text:
            self._chunks += 1
            self._first = self._first or self._seconds
        drafts = chunk.get("orthrus") or {}
        self._passes = drafts.get("pass", self._passes)
        pieces = drafts.get("pieces") or [{"text": text, "source": "plain"}]
        yield from (Part(piece["text"], piece["source"] in ("draft", "lookup")) for piece in pieces if piece["text"])

    def figures(self) -> Figures:
        """The figures of the whole answer. Without a usage, every chunk with text counts as a token."""
        prompt, details = self._usage.get("prompt_tokens") or 0, self._usage.get("prompt_tokens_details") or {}
        return Figures(
            tokens=self._usage.get("completion_tokens") or self._chunks, passes=self._passes, prompt_tokens=prompt,
            cached_tokens=details.get("cached_tokens") or 0, seconds=self._seconds, first_seconds=self._first,
            finish_reason=self._finish, context=self._context,
        )  # fmt: skip
