"""Limits of the connections that clients hold, per address and in all. One beyond them gets an error as its answer."""

from __future__ import annotations

import ipaddress
from collections import Counter
from http import HTTPStatus

from orthrus.serving.errors import SERVER, APIError, error_response
from orthrus.serving.settings import ServeSettings

RETRY_AFTER = {"Retry-After": "2"}
CODE = "too_many_connections"


class Connections:
    """Counts connections by source (see `source_of`).

    A refused connection stays open for its answer. There may be an eighth as many of those, and at least eight; what
    comes then is to be closed without one.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._most, self._most_of_source = settings.connection_limit, settings.address_limit
        self._admitted: Counter[str] = Counter()
        self._refused = 0

    def open(self, source: str) -> APIError | None:
        """Count a connection. Returns the error that refuses it, None where it is admitted."""
        if self._admitted.total() >= self._most:
            self._refused += 1
            message = (
                f"this server has as many connections as it takes ({self._most}): try again later, reuse connections,"
                " or start it with a larger --max-connections"
            )
            return APIError(message, status=503, type=SERVER, code=CODE, headers=RETRY_AFTER)
        if self._admitted[source] >= self._most_of_source:
            self._refused += 1
            message = (
                f"this server takes {self._most_of_source} connections from one address: close some, reuse them, or"
                " start it with a larger --connections-per-ip"
            )
            return APIError(message, status=429, type="rate_limit_error", code=CODE, headers=RETRY_AFTER)
        self._admitted[source] += 1
        return None

    def close(self, source: str, *, refused: bool) -> None:
        """Count a connection no longer."""
        if refused:
            self._refused -= 1
        elif self._admitted[source] > 1:
            self._admitted[source] -= 1
        else:
            del self._admitted[source]

    @property
    def crowded(self) -> bool:
        """Whether so many connections wait to be refused that others get no answer."""
        return self._refused > max(8, self._most // 8)


def source_of(host: str) -> str:
    """What counts as one address: an IPv4 address, the /64 network of an IPv6 address, which one machine may own."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def refusal_bytes(error: APIError) -> bytes:
    """The whole response of HTTP/1.1 that tells an error and ends the connection."""
    response = error_response(error, "")
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode(), b"connection: close"]
    lines += [b"%b: %b" % header for header in response.raw_headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)
