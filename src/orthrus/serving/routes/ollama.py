"""`/api/generate` and `/api/chat` of Ollama: a line of JSON for each pass, or one object."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from fastapi import APIRouter, Request, Response

from orthrus.decoding.sequence import Sequence as Decoded
from orthrus.serving import ollama
from orthrus.serving.answers import Answer, Delta, follow, format_of
from orthrus.serving.errors import as_api_error
from orthrus.serving.exchange import admit, as_json, as_stream, prepared, responses
from orthrus.serving.protocol import ollama as protocol
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket
from orthrus.tool_calls import ToolCall

LINES = "application/x-ndjson"


def router(service: Service) -> APIRouter:
    """The routes that generate text."""
    routes = APIRouter(tags=["ollama"])
    of_generate, of_chat = (
        responses(kind, error=protocol.OllamaError, media_type=LINES) for kind in (protocol.Generated, protocol.Chatted)
    )

    @routes.post("/api/generate", response_model=protocol.Generated, responses=of_generate)
    async def generate(body: protocol.GenerateRequest, http: Request) -> Response:
        """Answer a prompt, continue a text, or fill a gap. An empty prompt asks whether the model is loaded."""
        ollama.check_model(body.model, service)
        if not body.prompt and not body.suffix:
            return as_json(_Lines(service).loaded(protocol.Generated, body.keep_alive, response=""))
        return await answer(body, http, service, ollama.generate_requests, _generated)

    @routes.post("/api/chat", response_model=protocol.Chatted, responses=of_chat)
    async def chat(body: protocol.OllamaChatRequest, http: Request) -> Response:
        """Answer a conversation. Without messages it asks whether the model is loaded."""
        ollama.check_model(body.model, service)
        if not body.messages:
            message = protocol.AnsweredMessage(role="assistant", content="")
            return as_json(_Lines(service).loaded(protocol.Chatted, body.keep_alive, message=message))
        return await answer(body, http, service, ollama.chat_requests, _chatted)

    return routes


Show = Callable[[str, str, Sequence[ToolCall]], tuple[type[protocol.Timed], dict[str, Any]]]
"""How text, thinking and calls are shown: the kind of the answer and its fields."""


def _generated(text: str, thinking: str, calls: Sequence[ToolCall]) -> tuple[type[protocol.Timed], dict[str, Any]]:
    del calls  # there are no tools
    return protocol.Generated, {"response": text, **({"thinking": thinking} if thinking else {})}


def _chatted(text: str, thinking: str, calls: Sequence[ToolCall]) -> tuple[type[protocol.Timed], dict[str, Any]]:
    fields: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if calls:
        fields["tool_calls"] = [
            protocol.AnsweredCall(function=protocol.AnsweredFunction(name=call.name, arguments=_object(call.arguments)))
            for call in calls
        ]
    return protocol.Chatted, {"message": protocol.AnsweredMessage(role="assistant", content=text, **fields)}


async def answer(
    body: Any, http: Request, service: Service, make: Callable[[Any, Service], list[Any]], show: Show
) -> Response:
    """Decode the one request of a body, and answer with what `show` makes of it."""
    requests = await prepared(service, http, body, lambda: make(body, service))
    form = format_of(service.model, requests[0], tools=bool(getattr(body, "tools", None)), forced=False)
    lines = _Lines(service, Answer(form), show, len(requests[0].prompt))
    tickets = await admit(service, http, body, requests)
    if body.stream is False:
        return as_json(await lines.whole(tickets))
    return await as_stream(lines.stream(tickets), _failed, LINES)


def _failed(error: Exception) -> str:
    """The last line of a stream that ends by an error."""
    return protocol.OllamaError(error=str(as_api_error(error))).model_dump_json() + "\n"


class _Lines:
    """An answer as Ollama shows it."""

    def __init__(
        self, service: Service, answer: Answer | None = None, show: Show = _generated, prompt_tokens: int = 0
    ) -> None:
        self._model, self._answer, self._show = service.model_name, answer or Answer(), show
        self._prompt_tokens, self._began = prompt_tokens, perf_counter()

    def loaded(self, kind: type[protocol.Timed], keep_alive: protocol.Duration | None, **fields: Any) -> protocol.Timed:
        """The answer to a request without a prompt. The model is loaded, and stays so."""
        unload = str(keep_alive) in ("0", "0s", "0.0")
        return kind(**self._identity(), done=True, done_reason="unload" if unload else "load", **fields)

    async def whole(self, tickets: Sequence[Ticket]) -> protocol.Timed:
        """The whole answer, once it is complete."""
        async for _, step, _ in follow(tickets, [self._answer]):
            sequence = step.sequence
        thinking, text, calls = self._answer.whole()
        return self._object(text, thinking or "", calls, sequence)

    async def stream(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """A line for what each pass adds, and a last one with counts. Calls come whole, before the last line."""
        async for _, step, delta in follow(tickets, [self._answer]):
            sequence = step.sequence
            if delta.content or delta.reasoning:
                yield self._line(self._of(delta))
        calls = self._answer.whole()[2]
        if calls:
            yield self._line(self._object("", "", calls))
        yield self._line(self._object("", "", (), sequence))

    def _of(self, delta: Delta) -> protocol.Timed:
        return self._object(delta.content, delta.reasoning, ())

    def _object(
        self, text: str, thinking: str, calls: Sequence[ToolCall], ended: Decoded | None = None
    ) -> protocol.Timed:
        kind, fields = self._show(text, thinking, calls)
        if ended is None:
            return kind(**self._identity(), **fields, done=False)
        seconds, prefill = ended.statistics.seconds, ended.statistics.prefill_seconds
        return kind(
            **self._identity(), **fields, done=True, done_reason=self._answer.finish_reason,
            total_duration=_nanoseconds(perf_counter() - self._began), load_duration=0,
            prompt_eval_count=self._prompt_tokens, prompt_eval_duration=_nanoseconds(prefill),
            eval_count=len(self._answer.tokens), eval_duration=_nanoseconds(seconds - prefill),
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now()}

    def _line(self, line: protocol.Timed) -> str:
        return line.model_dump_json(exclude_unset=True) + "\n"


def now() -> str:
    """The time, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call; an empty object where they are not one."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
