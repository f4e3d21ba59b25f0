"""Limits of connections and of bodies on their way: what they refuse, whom they leave alone, and what they let go."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from small_server import serving
from starlette.datastructures import Headers

from orthrus.serving.bodies import LARGEST_AT_ONCE, SMALL_BODY, Bodies
from orthrus.serving.connections import source_of
from orthrus.serving.errors import APIError
from orthrus.serving.settings import ServeSettings

HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@asynccontextmanager
async def connection(client, source="127.0.0.1"):
    """A connection from an address of this machine; all of 127.0.0.0/8 are."""
    host, port = client.base_url.host, client.base_url.port
    reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()


async def status_of(reader, writer, sent=HEALTH):
    """The status of an answer, its headers, and the JSON in it."""
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
    return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))


@pytest.mark.parametrize(
    ("line", "status"),
    [("POST /health", 405), ("POST /metrics", 405), ("POST /playground/x", 404), ("GET /health", 200)],
)
@pytest.mark.parametrize("length", ["content-length: 900000", "transfer-encoding: chunked"])
def test_a_request_without_need_of_its_body_is_answered_before_it_comes(model, line, status, length):
    async def main():
        async with serving(model, api_keys=("key",)) as (_, client), connection(client) as (reader, writer):
            sent = f"{line} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n".encode()
            found, headers, _ = await asyncio.wait_for(status_of(reader, writer, sent), 10)
            assert (found, headers["connection"]) == (status, "close")
            assert await reader.read() == b""

    asyncio.run(main())


def test_an_open_path_keeps_the_connection_of_a_request_without_a_body(model):
    async def main():
        async with serving(model) as (_, client), connection(client) as (reader, writer):
            for _ in range(2):
                found, headers, _ = await status_of(reader, writer)
                assert found == 200 and "connection" not in headers

    asyncio.run(main())


async def refused_after(client, sources, source, expected):
    """Open a connection from each of `sources`, and one from `source` beyond the limit. Close one: there is a place."""
    connections = [connection(client, each) for each in sources]
    opened = [await each.__aenter__() for each in connections]
    for reader, writer in opened:
        assert (await status_of(reader, writer))[0] == 200
    async with connection(client, source) as (reader, writer):
        found, headers, content = await status_of(reader, writer, HEALTH + b"more than one request")
        assert (found, content["error"]["code"]) == (expected, "too_many_connections")
        assert headers["retry-after"] == "2" and headers["connection"] == "close"
        assert await reader.read() == b""
    await connections[0].__aexit__(None, None, None)
    while True:
        async with connection(client, source) as (reader, writer):
            if (await status_of(reader, writer))[0] == 200:
                break
    for each in connections[1:]:
        await each.__aexit__(None, None, None)


def test_connections_are_limited_per_address(model):
    async def main():
        async with serving(model, connections_per_ip=2) as (service, client):
            await refused_after(client, ["127.0.0.2"] * 2, "127.0.0.2", 429)
            async with connection(client, "127.0.0.2"), connection(client, "127.0.0.2"):
                assert (await client.get("/health")).status_code == 200  # from 127.0.0.1
            return service.metrics.exposition().decode()

    assert 'reason="too_many_connections"' in asyncio.run(main())


def test_connections_are_limited_in_all(model):
    async def main():
        async with serving(model, max_connections=3) as (_, client):
            await refused_after(client, ["127.0.0.2", "127.0.0.3", "127.0.0.4"], "127.0.0.5", 503)

    asyncio.run(main())


def test_connections_that_wait_to_be_refused_are_few_and_do_not_stay(model, monkeypatch):
    monkeypatch.setattr("orthrus.serving.http.SECONDS_TO_REFUSE", 0.2)

    async def main():
        async with serving(model, max_connections=1) as (service, client), connection(client) as (reader, writer):
            assert (await status_of(reader, writer))[0] == 200
            silent = [await asyncio.open_connection(client.base_url.host, client.base_url.port) for _ in range(20)]
            for waiting, _ in silent:
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await asyncio.wait_for(waiting.readexactly(1), 10)
            assert (await status_of(reader, writer))[0] == 200
            for _, closing in silent:
                closing.close()
            while len(service.server.server_state.connections) > 1:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_large_bodies_on_their_way_are_limited_together_and_small_ones_come_through():
    most, sent = 4 * SMALL_BODY, asyncio.Queue
    bodies = Bodies(ServeSettings(max_body_bytes=most))

    async def main():
        def reading(queue):
            return asyncio.create_task(bodies.read(Headers({}), queue.get))

        queues = [sent() for _ in range(LARGEST_AT_ONCE + 1)]
        tasks = [reading(queue) for queue in queues]
        for queue in queues:  # all but the last byte
            queue.put_nowait({"type": "http.request", "body": b"x" * (most - 1), "more_body": True})
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        [error] = [task.exception() for task in refused]
        assert isinstance(error, APIError) and (error.status, error.detail.code) == (503, "too_many_bodies")
        small = sent()
        small.put_nowait({"type": "http.request", "body": b"x" * SMALL_BODY, "more_body": True})
        small.put_nowait({"type": "http.request", "body": b""})
        assert len(await reading(small)) == SMALL_BODY
        for queue, task in zip(queues, tasks, strict=True):
            queue.put_nowait(
                {"type": "http.disconnect"} if task is tasks[0] else {"type": "http.request", "body": b"x"}
            )
        await asyncio.wait(tasks)
        assert sum(task.exception() is None for task in tasks) == LARGEST_AT_ONCE - 1
        assert bodies._on_their_way == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
    ],
)
def test_a_source_is_an_address_or_the_network_that_one_machine_may_own(host, source):
    assert source_of(host) == source


def test_limits_of_connections_leave_room_for_every_place_of_the_queue():
    default = ServeSettings()
    assert (default.address_limit, default.connection_limit) == (144, 576)
    assert ServeSettings(max_num_seqs=100, max_queue=400).address_limit == 1000
    given = ServeSettings(max_connections=7, connections_per_ip=3)
    assert (given.address_limit, given.connection_limit) == (3, 7)
    for name in ("max_connections", "connections_per_ip"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            ServeSettings(**{name: 0})
