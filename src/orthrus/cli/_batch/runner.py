"""Send the requests of a batch to a server, several at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from orthrus.cli._batch.requests import BatchRequest

if TYPE_CHECKING:
    import httpx

BUSY = (429, 503)
BUSY_TRIES, MAX_WAIT = 30, 60.0
"""How often a server may say that it is busy before that is the answer, and the longest wait in between, in seconds."""
LOST_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Waits after a connection that failed, in seconds; after the last the batch stops."""


class BatchStopped(Exception):  # noqa: N818
    """The batch cannot go on. The message says why; the same command goes on later."""


class BatchRunner:
    """Sends requests, at most `concurrency` at a time, and hands on a record of each answer."""

    def __init__(self, client: httpx.AsyncClient, concurrency: int, keep: Callable[[dict[str, Any]], None]) -> None:
        self._client, self._concurrency, self._keep = client, concurrency, keep

    async def run(self, requests: Iterable[BatchRequest]) -> None:
        """Send all requests. Raises BatchStopped where the server is gone or wants another key, OSError of `keep`."""
        queue = iter(requests)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work(queue))
        except* (BatchStopped, OSError) as ended:
            raise ended.exceptions[0] from None

    async def _work(self, queue: Iterator[BatchRequest]) -> None:
        for request in queue:
            self._keep(await self._record(request))

    async def _record(self, request: BatchRequest) -> dict[str, Any]:
        """The record of a request, as in the output files of OpenAI's batch API."""
        record = {"id": f"batch_req_{uuid4().hex}", "custom_id": request.custom_id}
        if request.body.get("stream"):
            return record | _refused("a batch has whole answers: leave stream out", "stream", "invalid_value")
        try:
            json.dumps(dict(request.body), allow_nan=False)
        except ValueError as invalid:  # NaN and Infinity, which Python reads
            return record | _refused(f"the body is not valid JSON: {invalid}", None, "invalid_json")
        response = await self._send(request)
        if response.status_code in (401, 403):
            raise BatchStopped(f"the server answers {response.status_code}: give its key with --api-key")
        try:
            body = response.json()
        except ValueError:
            error = {"code": "invalid_response", "message": f"no JSON, but {response.text[:200]!r}"}
            return {**record, "response": None, "error": error}
        told = {"status_code": response.status_code, "request_id": response.headers.get("x-request-id", "")}
        return {**record, "response": {**told, "body": body}, "error": None}

    async def _send(self, request: BatchRequest) -> httpx.Response:
        """Send a request, again where the server is busy or the connection fails."""
        import httpx

        busy = lost = 0
        while True:
            try:
                response = await self._client.post(request.path, json=dict(request.body))
            except httpx.HTTPError as error:
                problem = error
            else:
                busy += 1
                if response.status_code not in BUSY or busy >= BUSY_TRIES:
                    return response
                await asyncio.sleep(_wait(response, busy))
                continue
            if lost == len(LOST_WAITS):
                raise BatchStopped(f"no answer from {self._client.base_url} ({problem or type(problem).__name__})")
            await asyncio.sleep(LOST_WAITS[lost])
            lost += 1


def _refused(message: str, param: str | None, code: str) -> dict[str, Any]:
    """What the record of a request holds that was not sent, as if the server had refused it."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"response": {"status_code": 400, "request_id": "", "body": {"error": error}}, "error": None}


def _wait(response: httpx.Response, tries: int) -> float:
    """Seconds to wait: what the server says, else longer each time."""
    try:
        return min(MAX_WAIT, max(0.0, float(response.headers.get("retry-after", ""))))
    except ValueError:
        return min(MAX_WAIT, 0.5 * 2.0 ** min(tries, 10))
