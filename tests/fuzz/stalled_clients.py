"""Attacks by clients without a key that hold connections: bodies that never end, and connections that say nothing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from threading import Event, Thread
from urllib.parse import urlsplit

import httpx
from health_watch import watched

BODIES, BODY = 60, 7_900_000
IDLE = 400
"""More connections than one address may hold."""


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a server."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def withhold(address: tuple[str, int], ended: Event) -> None:
    """Send a request all of whose body but a byte comes, and wait."""
    head = f"POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: {BODY}\r\n\r\n".encode()
    part = b"x" * 2**16
    with socket.create_connection(address) as connection:
        try:
            connection.sendall(head)
            for _ in range(BODY // len(part)):
                connection.sendall(part)
            connection.sendall(b"x" * (BODY % len(part) - 1))
        except OSError:
            return  # the server has answered and closed
        ended.wait()


async def withheld_bodies(process: int, url: str, client: httpx.AsyncClient) -> str:
    """Many large bodies at a path without a key, each with its last byte withheld."""
    ended = Event()
    threads = [Thread(target=withhold, args=(address_of(url), ended), daemon=True) for _ in range(BODIES)]
    async with watched(process, client) as watch:
        for thread in threads:
            thread.start()
        await asyncio.sleep(5)
        taken = watch.most - watch.before
        assert taken < BODIES * BODY / 4e6, f"{taken} MB are taken by bodies that nobody reads"
        ended.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    return f"{BODIES} bodies of {BODY / 1e6:.1f} MB without their last byte; {watch.check()}"


async def idle_connections(process: int, url: str, client: httpx.AsyncClient) -> str:
    """More silent connections from one address than it may hold; a client from another address is served."""
    with ExitStack() as stack:
        async with watched(process, client) as watch:
            for _ in range(IDLE):
                source = ("127.0.0.2", 0)
                stack.enter_context(socket.create_connection(address_of(url), source_address=source))
                await asyncio.sleep(0.005)
            await asyncio.sleep(3)
    return f"{IDLE} silent connections; {watch.check()}"
