"""Bodies of requests, read whole: under limits of their size, of their time, and of the memory of all together."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive

from orthrus.serving.errors import SERVER, APIError
from orthrus.serving.settings import ServeSettings

METHODS = ("POST", "PUT", "PATCH")
"""The methods whose bodies are read."""
LARGEST_AT_ONCE = 16
"""How many of the largest bodies may be on their way at once."""
SMALL_BODY = 2**16
"""Bytes of a body that do not count towards that: the HTTP library reads as much of any body."""


class ClientGoneError(Exception):
    """The client has gone before its request was complete."""


class Bodies:
    """Reads bodies for a server with these settings."""

    def __init__(self, settings: ServeSettings) -> None:
        self._most, self._seconds = settings.max_body_bytes, settings.client_timeout
        self._on_their_way = 0

    async def read(self, headers: Headers, receive: Receive, longest_prompt: int | None = None) -> bytes:
        """A whole body. longest_prompt: the most bytes of a body whose prompt can fit the context.

        Raises APIError if it is too large, does not come in time, or comes together with too many large ones, and
        ClientGoneError.
        """
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most:
            raise self._too_large()
        if longest_prompt is not None and int(length) > longest_prompt:
            long = f"the body has {length} bytes; with a prompt that fits the context it has less than {longest_prompt}"
            raise APIError(long, code="context_length_exceeded")
        body, counted = bytearray(), 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > self._most:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
                    if len(body) > SMALL_BODY:
                        self._on_their_way += len(body) - counted
                        counted = len(body)
                        self._check_all()
        except TimeoutError:
            late = f"the body did not arrive within {self._seconds:g} s"
            raise APIError(late, status=408, code="body_timeout") from None
        finally:
            self._on_their_way -= counted

    def _too_large(self) -> APIError:
        large = f"the body is larger than the {self._most} bytes that this server takes"
        return APIError(large, status=413, code="body_too_large")

    def _check_all(self) -> None:
        """Raise APIError where the bodies on their way take too much memory."""
        if self._on_their_way > LARGEST_AT_ONCE * self._most:
            message = "this server is receiving as many large bodies as it takes at once: try again later"
            raise APIError(message, status=503, type=SERVER, code="too_many_bodies", headers={"Retry-After": "2"})
