"""What every route does: admit requests, answer as JSON or as a stream of events, and say which errors may come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from hashlib import sha256
from time import time
from typing import Any
from uuid import uuid4

from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from orthrus import __version__
from orthrus.decoding.sequence import Request
from orthrus.serving.errors import SERVER, APIError, ErrorResponse, as_api_error
from orthrus.serving.prompts import told_to_client
from orthrus.serving.protocol.common import Body
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket

STATUSES = {
    400: "The request is wrong; the error names the field",
    401: "The API key is missing or wrong",
    403: "The name of the host or the origin of the page is not one that this server answers to",
    404: "The model is not served here",
    408: "The body of the request did not come in time",
    413: "The body of the request is too large",
    429: "The queue is full, or your address has too many connections; `Retry-After` says when to try again",
    500: "The server failed",
    503: "The server is shutting down, or has too many connections or large bodies",
    504: "The request timed out before its first token",
}
"""The errors of a route, for the OpenAPI schema."""
EVENTS = "text/event-stream"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = "data: [DONE]\n\n"


class Identity:
    """What the answers of a request say of themselves."""

    def __init__(self, service: Service, prefix: str) -> None:
        backbone = service.model.checkpoint.backbone
        digest = sha256(repr((__version__, backbone.sha256, service.model.kernels)).encode())
        self.id, self.created = f"{prefix}{uuid4().hex}", int(time())
        self.model, self.fingerprint = service.model_name, f"fp_{digest.hexdigest()[:10]}"

    def fields(self) -> dict[str, Any]:
        """The fields that completions and their chunks begin with."""
        return {
            "id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint,
        }  # fmt: skip


def responses(
    stream: type[BaseModel] | None = None, *, error: type[BaseModel] = ErrorResponse, media_type: str = EVENTS
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route beside its JSON: errors, and a stream of events or lines of a model."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": error, "description": told} for status, told in STATUSES.items()
    }
    if stream is None:
        return errors
    kind = "events whose data is" if media_type == EVENTS else "lines each of which is"
    reference = {"schema": {"type": "string", "description": f"{kind} a {stream.__name__}"}}
    return {200: {"content": {media_type: reference}}, **errors}


async def prepared(
    service: Service, http: HTTPRequest, body: Body, make: Callable[[], Sequence[Request]]
) -> list[Request]:
    """Encode prompts outside of the event loop. What is wrong with them is a 400."""
    context = getattr(http.state, "context", None)

    def made() -> list[Request]:
        if context is not None and context.gone:
            raise APIError("the client has gone", status=503, type=SERVER, code="cancelled")
        return list(make())

    try:
        return await service.prepare(made)
    except ValueError as error:
        raise told_to_client(error, body) from error


async def admit(service: Service, http: HTTPRequest, body: Body, requests: Sequence[Request]) -> list[Ticket]:
    """Submit requests, all or none, and wait until their constraint, which they share, is compiled. Raises APIError
    where the engine refuses one, and what `submit` raises."""
    try:
        tickets = service.submit(requests, getattr(http.state, "context", None))
        await tickets[0].compiled()
    except ValueError as error:
        raise told_to_client(error, body) from error
    return tickets


def as_json(answer: BaseModel) -> Response:
    """An answer as JSON; fields that were not set are left out."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def event(data: BaseModel, name: str | None = None) -> str:
    """A server-sent event."""
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {data.model_dump_json(exclude_unset=True)}\n\n"


async def as_stream(
    events: AsyncGenerator[str], failed: Callable[[Exception], str] | None = None, media_type: str = EVENTS
) -> StreamingResponse:
    """A stream of events, begun once the first is there: what fails before it has a status of its own.

    failed: the event that tells an error in the midst, after which the stream ends.
    """
    first = await anext(events)

    async def body() -> AsyncIterator[str]:
        try:
            yield first
            async for each in events:
                yield each
        except Exception as error:
            yield failed(error) if failed else event(ErrorResponse(error=as_api_error(error).detail))
        finally:
            await events.aclose()

    return StreamingResponse(body(), media_type=media_type, headers=STREAM_HEADERS)
