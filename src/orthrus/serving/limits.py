"""What stands between the network and the routes: request ids, the access log, hosts, keys, sizes, and disconnections.

Written as plain ASGI: a middleware that wraps responses in tasks of its own breaks streaming. The body of a request is
read here, under limits of size, time and memory, and handed on in one piece; that of a request that needs none is not
read. From then on the connection is watched, and the requests of a client that goes away are cancelled before the next
pass, whether it was to get a stream or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import uuid
from contextlib import suppress
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orthrus.serving.bodies import METHODS, Bodies, ClientGoneError
from orthrus.serving.errors import APIError, as_api_error, error_response
from orthrus.serving.logs import ACCESS
from orthrus.serving.service import DrainingError, Service
from orthrus.serving.settings import ServeSettings
from orthrus.serving.tickets import RequestContext

OPEN_PATHS = ("/", "/health", "/version", "/metrics", "/playground")
"""What needs no API key, and is answered while draining; paths below `/playground` too."""
ONE_PROMPT = ("/v1/chat/completions", "/v1/responses")
"""Paths whose bodies hold one prompt, so that one which is too long for the context is not read at all."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LOGGED_BODY = 10_000
"""Characters of a body that `--log-prompts` logs."""
access_log = logging.getLogger(ACCESS)


def install(app: FastAPI, service: Service) -> None:
    """Put the limits before an app, and before them the permissions for pages of other origins (CORS), if any."""
    app.add_middleware(Limits, service=service)
    if service.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.settings.allowed_origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip


class Limits:
    """The middleware. `service.settings` holds the limits; `request.state.context` gets the `RequestContext`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings = app, service, service.settings
        self._bodies = Bodies(service.settings)
        self._keys = [_digest(key.encode()) for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other kinds of connections pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        context = RequestContext(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["context"] = context
        answer = _Answer(send, context)
        body, error = b"", ""
        try:
            self._check(scope, headers, context)
            if scope["method"] in METHODS and not _is_open(scope["path"]):
                longest = self._service.longest_body if scope["path"] in ONE_PROMPT else None
                body = await self._bodies.read(headers, receive, longest)
                _check_kind(headers, body)
            else:
                answer.closes = _has_body(headers)
            connection = _Connection(body, receive, context)
            body = body[:LOGGED_BODY] if self._settings.log_prompts else b""
            await self._run(scope, connection, answer)
        except APIError as refusal:
            self._service.metrics.count_rejected(str(refusal.detail.code))
            await answer.refuse(refusal, scope, receive)
        except ClientGoneError:
            context.disconnected = True
        except Exception as raised:
            error = type(raised).__name__
            if answer.status:
                raise  # in the middle of an answer
            await answer.refuse(as_api_error(raised), scope, receive)
        finally:
            self._log(scope, context, answer, body, error)

    async def _run(self, scope: Scope, connection: _Connection, answer: _Answer) -> None:
        watch = asyncio.create_task(connection.watch())
        try:
            await self._app(scope, connection.receive, answer.send)
        finally:
            watch.cancel()
            connection.context.cancel()  # the client has gone: drop what is not sent

    def _check(self, scope: Scope, headers: Headers, context: RequestContext) -> None:
        """Raise APIError where host, origin, key or the state of the server forbid to go on; note the key."""
        if not _host_allowed(headers.get("host", ""), self._settings):
            message = "this server does not answer to the name in the Host header: see --allowed-host"
            raise APIError(message, status=403, type="permission_error", code="host_not_allowed")
        if not self._keys and not _origin_allowed(headers, self._settings):
            message = "this server takes no requests from pages of that origin: see --allow-origin and --api-key"
            raise APIError(message, status=403, type="permission_error", code="origin_not_allowed")
        if _is_open(scope["path"]):
            return
        context.key = self._key(headers.get("authorization", ""))
        if self._keys and not context.key:
            message, ask = "no valid API key: send one as `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"}
            raise APIError(message, status=401, type="authentication_error", code="invalid_api_key", headers=ask)
        if self._service.draining:
            raise as_api_error(DrainingError())

    def _key(self, header: str) -> str:
        """What stands for the key in the header, "" if the server has no such key. Every key is compared, in a time
        that tells nothing about them."""
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip().encode())
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return given.hex() if scheme.lower() == "bearer" and any(matches) else ""

    def _log(self, scope: Scope, context: RequestContext, answer: _Answer, body: bytes, error: str) -> None:
        """Write the access log: no query, no header but the id, and no text unless it is asked for."""
        fields: dict[str, Any] = {
            "request_id": context.request_id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": answer.status or (499 if context.disconnected else 500),
            "seconds": round(perf_counter() - context.arrived, 6),
            "disconnected": context.disconnected,
            **context.token_counts(),
        }
        if error:
            fields["error"] = error
        if self._settings.log_prompts and body:
            fields["body"] = body[:LOGGED_BODY].decode(errors="replace")
        access_log.info("request", extra={"fields": fields})


class _Connection:
    """The receiving side of a request whose body has been read, or is dropped as it comes."""

    def __init__(self, body: bytes, receive: Receive, context: RequestContext) -> None:
        self.context = context
        self._body: bytes | None = body
        self._receive = receive
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        """The body first, then that the client has gone, once it has."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def watch(self) -> None:
        """Wait until the client has gone, and cancel its requests. Runs until it is cancelled."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.context.gone = True
        self.context.disconnected = any(not ticket.done for ticket in self.context.tickets)
        self.context.cancel()
        self._gone.set()


class _Answer:
    """The sending side: adds the request id, and remembers the status: 499 where the client had gone before it.

    closes: the answer ends the connection, whose body may not have been read.
    """

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send, self._context = send, context
        self.status, self.closes = 0, False

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if message["type"] == "http.response.start":
            self.status = 499 if self._context.gone else message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self._context.request_id.encode())]
            headers += [(b"connection", b"close")] if self.closes else []
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: APIError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, and close the connection."""
        self.closes = True
        response = error_response(error, scope["path"])
        with suppress(OSError):  # the client need not wait for it
            await response(scope, receive, self.send)


def _digest(key: bytes) -> bytes:
    """Of equal length for every key, so that comparing does not tell the length either."""
    return hashlib.sha256(key).digest()


def _is_open(path: str) -> bool:
    """Whether a path needs no key, nor a body."""
    return path in OPEN_PATHS or path.startswith("/playground/")


def _has_body(headers: Headers) -> bool:
    """Whether a request says that it has a body."""
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _check_kind(headers: Headers, body: bytes) -> None:
    """Raise APIError for a body that does not say that it is JSON, as those of `curl -d` without a header."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and not (kind.startswith("application/") and kind.endswith(("/json", "+json"))):
        message = "the body must be JSON and say so: send it with `Content-Type: application/json`"
        raise APIError(message, code="invalid_content_type")


def _host_allowed(header: str, settings: ServeSettings) -> bool:
    """Whether a Host header names this server. A web page can point a name of its own at an address of this machine
    (DNS rebinding); addresses are always right. A server that others reach answers to every name unless some are set.
    """
    if not settings.allowed_hosts and not settings.local:
        return True
    with suppress(ValueError):
        name = urlsplit(f"//{header}").hostname or ""
        if name in ("localhost", settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)):
            return True
        return bool(ipaddress.ip_address(name))
    return False


def _origin_allowed(headers: Headers, settings: ServeSettings) -> bool:
    """Whether a web page may send requests here: one that this server sent, or one of an allowed origin.

    Browsers keep a page of another origin from reading the answer, but not from asking, which costs as much.
    """
    origin = headers.get("origin")
    if origin is None or "*" in settings.allowed_origins or origin in settings.allowed_origins:
        return True
    with suppress(ValueError):
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    return False
