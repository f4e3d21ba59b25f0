"""`/infill` of llama.cpp's server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from orthrus.decoding import sequence
from orthrus.serving import prompts
from orthrus.serving.answers import Answer, follow
from orthrus.serving.exchange import admit, as_stream, prepared, responses
from orthrus.serving.infill import EarlyEnd, infill_request
from orthrus.serving.protocol.infill import Infilled, InfillRequest, Timings
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["completions"])

    @routes.post("/infill", responses=responses(Infilled), response_model=Infilled)
    async def infill(body: InfillRequest, http: Request) -> Response:
        """Fill the gap at a cursor."""
        prompts.check_model(body.model or None, service)
        gap = _Gap(service, body)
        tickets = await admit(service, http, body, await prepared(service, http, body, gap.requests))
        if body.stream:
            return await as_stream(gap.events(tickets))
        text = [part async for part in gap.parts(tickets)]
        return Response(gap.shown(gap.whole("".join(text))), media_type="application/json")

    return routes


class _Gap:
    """A request and its answer."""

    def __init__(self, service: Service, body: InfillRequest) -> None:
        self._service, self._body, self._end = service, body, EarlyEnd(body)
        self._answer, self._truncated = Answer(), False
        self._request: sequence.Request | None = None
        self._ended: sequence.Sequence | None = None

    def requests(self) -> Sequence[sequence.Request]:
        """What the engine decodes."""
        self._request, self._truncated = infill_request(self._body, self._service)
        return [self._request]

    async def parts(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """The text of the gap as it becomes certain. Where it ends early, no further pass is made for it."""
        async with aclosing(follow(tickets, [self._answer])) as steps:
            async for _, step, delta in steps:
                self._ended = step.sequence
                yield self._end.take(delta.content)
                if self._end.reached:
                    return
        yield self._end.rest()

    async def events(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """The events of a stream: new text, and then the counts."""
        async for text in self.parts(tickets):
            if text:
                yield f"data: {self.shown(Infilled(index=0, content=text, stop=False))}\n\n"
        yield f"data: {self.shown(self.whole(''))}\n\n"

    def whole(self, text: str) -> Infilled:
        """The end of the answer."""
        assert self._request is not None and self._ended is not None
        tokens, early = len(self._answer.tokens), self._end.reached
        of_prompt, statistics = len(self._request.prompt), self._ended.statistics
        cached = statistics.cached_tokens
        return Infilled(
            index=0, content=text, stop=True, model=self._service.model_name, tokens_predicted=tokens,
            tokens_evaluated=of_prompt, tokens_cached=of_prompt + tokens - 1, truncated=self._truncated,
            has_new_line="\n" in self._answer.text,
            stop_type="eos" if self._answer.finish_reason == "stop" and not early else "limit",
            timings=_timings(cached, of_prompt - cached, tokens, statistics.prefill_seconds, self._end.seconds),
        )  # fmt: skip

    def shown(self, answer: Infilled) -> str:
        """An answer as JSON with the fields that were asked for. llama.vim takes no blank after a name."""
        fields: dict[str, Any] = json.loads(answer.model_dump_json(exclude_unset=True))
        if self._body.response_fields is not None:
            named = {path: _nested(fields, path.split("/")) for path in self._body.response_fields}
            fields = {path: value for path, value in named.items() if value is not None}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _timings(cached: int, read: int, tokens: int, prefill: float, decode: float) -> Timings:
    per_prompt, per_token = prefill * 1000 / max(1, read), decode * 1000 / max(1, tokens)
    return Timings(
        cache_n=cached, prompt_n=read, prompt_ms=prefill * 1000, prompt_per_token_ms=per_prompt,
        prompt_per_second=read / max(prefill, 1e-9), predicted_n=tokens, predicted_ms=decode * 1000,
        predicted_per_token_ms=per_token, predicted_per_second=tokens / max(decode, 1e-9),
    )  # fmt: skip


def _nested(value: Any, path: Sequence[str]) -> Any:
    """The value at a path; None where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
