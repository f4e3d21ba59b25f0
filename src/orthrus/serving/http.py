"""The HTTP server: a bound socket, limits of connections, deadlines for clients that stall, and signals that drain."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from orthrus.serving.connections import CODE, Connections, refusal_bytes, source_of
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

BACKLOG = 512
SECONDS_TO_FLUSH = 5
"""How long the last bytes of answers may take when the server exits."""
SECONDS_TO_REFUSE = 2.0
"""How long a connection beyond the limits is kept for its answer."""


class Protocol(H11Protocol):
    """HTTP/1.1 with limits of connections, and with a deadline for the head of a request and for a client that has
    stopped reading.

    The deadline of a body is kept by `Bodies`; that of idle connections by uvicorn.
    """

    def __init__(self, *args: Any, service: Service, connections: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._service, self._connections = service, connections
        self._source, self._refusal, self._refused = "", b"", False
        self._head = _Deadline(self.loop, service.settings.client_timeout)
        self._reader = _Deadline(self.loop, service.settings.client_timeout)
        self._goodbye = _Deadline(self.loop, SECONDS_TO_REFUSE)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and start the deadline of its first request."""
        super().connection_made(transport)
        self._source = source_of(self.client[0] if self.client else "")
        refusal = self._connections.open(self._source)
        if refusal is None:
            self._head.start(transport)
            return
        self._refusal = refusal_bytes(refusal)
        self._service.metrics.count_rejected(CODE)
        if self._connections.crowded:
            transport.abort()
        else:
            self._goodbye.start(transport)

    def data_received(self, data: bytes) -> None:
        """Start a deadline where a head is incomplete, and end it where it is complete. A connection beyond the limits
        is answered, and what it sends is dropped: closed at once, it might be reset before the client has its answer.
        """
        if self._refusal:
            if not self._refused:
                self._refused = True
                self.transport.write(self._refusal)
                self.transport.write_eof()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._head.start(self.transport)
        else:
            self._head.stop()

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer comes: give it some time."""
        super().pause_writing()
        self._reader.start(self.transport)

    def resume_writing(self) -> None:
        """The client has read again."""
        super().resume_writing()
        self._reader.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadlines, and count the connection no longer."""
        super().connection_lost(exc)
        self._connections.close(self._source, refused=bool(self._refusal))
        for deadline in (self._head, self._reader, self._goodbye):
            deadline.stop()


class Server(uvicorn.Server):
    """Serves an app until SIGTERM or SIGINT: new work is then refused with 503, and the process exits when the requests
    in flight have ended or `drain_timeout` has passed. A second signal cancels what is left.

    listening: called once connections are accepted.
    """

    def __init__(self, app: ASGIApp, service: Service, listening: Callable[[], None] = lambda: None) -> None:
        settings = service.settings
        config = uvicorn.Config(
            app,
            http=partial(Protocol, service=service, connections=Connections(settings)),  # type: ignore[arg-type]
            ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_FLUSH, backlog=BACKLOG,
        )  # fmt: skip
        super().__init__(config)
        self._service, self._listening = service, listening
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler, which runs between any two instructions of the main thread."""
        del sig, frame
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Finish what is in flight and exit. Called again, cancel it."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._service.cancel_all()

    async def _drain(self) -> None:
        await self._service.drain(self._service.settings.drain_timeout)
        self.should_exit = True


def bind(settings: ServeSettings) -> socket.socket:
    """A socket at the host and port, which does not listen yet. Raises ValueError if they cannot be had."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"--host {settings.host}: {error.strerror}") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"{where} is in use: choose another --port, or 0 for any free one") from None
        raise ValueError(f"cannot listen on {where}: {error.strerror}") from None
    return bound


class _Deadline:
    """Aborts a connection some seconds after `start`, unless `stop` comes first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Start, unless it runs."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, transport.abort)

    def stop(self) -> None:
        """Stop, if it runs."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
