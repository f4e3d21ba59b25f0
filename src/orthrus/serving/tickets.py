"""Admitted requests, as the routes see them: their steps, how they end, and those of one HTTP request together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from orthrus.decoding.cycle import Step
from orthrus.decoding.sequence import Request
from orthrus.serving.metrics import Progress


class PassFailedError(Exception):
    """A pass raised an exception, which ended the requests in flight: HTTP 500. Later requests are served."""

    def __init__(self) -> None:
        super().__init__("a forward pass failed, and with it this request; the log of the server says why")


class OverdueError(Exception):
    """The deadline of a request passed while its constraint waited to be compiled: HTTP 504."""

    def __init__(self) -> None:
        super().__init__("the request timed out before its first token")


class Ticket:
    """An admitted request. `cancel` ends it before the next pass, and its steps with it."""

    def __init__(self, request: Request, arrived: float) -> None:
        self.request = request
        self.progress = Progress(len(request.prompt), request.stop.max_new_tokens, arrived)
        self.finish_reason: str | None = None
        self._steps: asyncio.Queue[Step | Exception | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._compiled = asyncio.Event()
        self._refusal: ValueError | OverdueError | None = None

    async def compiled(self) -> None:
        """Wait until the constraint of the request is compiled, if it has one, or until the request has ended.

        Raises ValueError where the constraint cannot be used, OverdueError where it took too long.
        """
        await self._compiled.wait()
        if self._refusal is not None:
            raise self._refusal

    async def steps(self) -> AsyncIterator[Step]:
        """The steps of the request, as they happen and once. A cancelled request has no further step.

        Raises PassFailedError where a pass failed, and what `compiled` raises.
        """
        while (step := await self._steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step

    def cancel(self) -> None:
        """End the request before the next pass. One that has ended stays as it is."""
        if self._task is not None:
            self._task.cancel()

    @property
    def done(self) -> bool:
        """Whether it has ended: no further pass computes anything for it."""
        return self._task is not None and self._task.done()


@dataclass
class RequestContext:
    """What the server keeps of an HTTP request; routes find it in `request.state.context`.

    Cancelling the tickets of a client that has gone, and the token counts of the access log, go by `tickets`. key: the
    same for all requests with one API key. gone: the client has left; what is submitted for it afterwards is cancelled
    at once.
    """

    request_id: str
    key: str = ""
    tickets: list[Ticket] = field(default_factory=list)
    arrived: float = field(default_factory=perf_counter)
    disconnected: bool = False
    gone: bool = False

    def cancel(self) -> None:
        """Cancel all that was submitted for this HTTP request."""
        for ticket in self.tickets:
            ticket.cancel()

    def token_counts(self) -> dict[str, Any]:
        """What the access log says of the tickets; nothing if there are none."""
        if not self.tickets:
            return {}
        each = [ticket.progress for ticket in self.tickets]
        first = [progress.first_token for progress in each if progress.first_token is not None]
        return {
            "prompt_tokens": sum(progress.prompt_tokens for progress in each),
            "cached_tokens": sum(progress.cached_tokens for progress in each),
            "generated_tokens": sum(progress.generated for progress in each),
            "passes": sum(progress.passes for progress in each),
            "first_token_seconds": round(min(first) - self.arrived, 6) if first else None,
            "finish_reasons": [ticket.finish_reason for ticket in self.tickets],
        }
