"""Faults against a server process of a real model: clients that leave, a flood, SIGTERM under load, SIGKILL and a new
start, a context too small, clients that hold connections, requests that are costly to take in. Other answers must stay
as they are, and nothing may be left behind.

    python tests/fuzz/faults.py --model smollm2-demo
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import httpx
from costly_requests import costly_constraints, long_chats
from stalled_clients import idle_connections, withheld_bodies

PLACES, QUEUE = 4, 6


class Process:
    """`orthrus serve`, at `url` once `start` has returned."""

    def __init__(self, model: str, *options: str) -> None:
        places = ["--max-num-seqs", str(PLACES), "--max-queue", str(QUEUE), "--port", "0", *options]
        began = perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orthrus", "serve", model, *places],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", self.process.stdout.readline())
        assert found, "the server has not started"
        self.url, self.seconds = found[0], perf_counter() - began

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client with as many connections as it needs."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as client:
            yield client


def body(question: str, tokens: int = 24, **more: object) -> dict[str, object]:
    """A greedy chat request."""
    return {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0, **more}


async def answer(client: httpx.AsyncClient, question: str = "Name a river.", tokens: int = 24) -> httpx.Response:
    """A whole answer."""
    return await client.post("/v1/chat/completions", json=body(question, tokens))


def text(response: httpx.Response) -> str:
    """The text of an answer that must have come."""
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def metric(client: httpx.AsyncClient, pattern: str) -> float:
    """The value of a metric whose line matches."""
    found = re.search(rf"^{pattern} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    assert found, pattern
    return float(found[1])


async def settle(client: httpx.AsyncClient) -> None:
    """Wait until nothing runs; no page may be in use then."""
    for kind in ("running", "waiting"):
        while await metric(client, rf"vllm:num_requests_{kind}\{{.*\}}"):
            await asyncio.sleep(0.05)
    assert not await metric(client, r"vllm:kv_cache_usage_perc\{.*\}")


async def leave(client: httpx.AsyncClient, rng: random.Random, limit: asyncio.Semaphore) -> None:
    """Ask for a long answer and go after a random time, streamed or not."""
    async with limit:
        request = body("Tell me a long story.", 400, stream=rng.random() < 0.5, ignore_eos=True)
        task = asyncio.create_task(client.post("/v1/chat/completions", json=request))
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        task.cancel()
        await asyncio.wait([task])


async def disconnects(client: httpx.AsyncClient, count: int) -> str:
    """Clients leave while others read on."""
    expected, rng, limit = text(await answer(client)), random.Random(0), asyncio.Semaphore(PLACES + QUEUE - 4)
    before = await metric(client, r'vllm:request_success_total\{.*finished_reason="abort".*\}')
    leaving = asyncio.gather(*(leave(client, rng, limit) for _ in range(count)))
    others = []
    while not leaving.done():
        others += [text(one) for one in await asyncio.gather(*(answer(client, tokens=24) for _ in range(3)))]
    await settle(client)
    aborted = await metric(client, r'vllm:request_success_total\{.*finished_reason="abort".*\}') - before
    assert set(others) == {expected}
    return f"{count} clients left, {aborted:.0f} requests aborted, {len(others)} other answers equal, 0 pages in use"


async def flood(client: httpx.AsyncClient) -> str:
    """Ten times as many requests as there are places."""
    places = PLACES + QUEUE
    found = await asyncio.gather(*(answer(client, tokens=200) for _ in range(10 * places)))
    refused = [one for one in found if one.status_code == 429]
    assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in refused)
    assert len({text(one) for one in found if one not in refused}) == 1
    await settle(client)
    return (
        f"{10 * places} requests on {places} places: {len(found) - len(refused)} answered alike, {len(refused)} x 429"
    )


async def terminate(server: Process, client: httpx.AsyncClient) -> str:
    """SIGTERM with all places taken: what is in flight ends, what comes is refused, the process exits with 0."""
    expected = text(await answer(client, tokens=300))
    calls = [asyncio.create_task(answer(client, tokens=300)) for _ in range(PLACES + QUEUE)]
    while await metric(client, r"vllm:num_requests_waiting\{.*\}") < QUEUE:
        await asyncio.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    while (await client.get("/health")).status_code == 200:
        await asyncio.sleep(0.02)
    late = (await answer(client)).status_code
    found = {text(each) for each in await asyncio.gather(*calls)}
    code = await asyncio.to_thread(server.process.wait, 60)
    assert (found, late, code) == ({expected}, 503, 0)
    return f"{len(calls)} in flight answered alike, a later one {late}, exit code {code}"


async def kill(server: Process, client: httpx.AsyncClient) -> str:
    """SIGKILL with requests in flight: they fail, and a new process gives the same answer."""
    expected = text(await answer(client))
    calls = [asyncio.create_task(answer(client, tokens=300)) for _ in range(PLACES)]
    while await metric(client, r"vllm:num_requests_running\{.*\}") < PLACES:
        await asyncio.sleep(0.02)
    server.process.kill()
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, httpx.HTTPError) for one in failed)
    return expected


async def small(client: httpx.AsyncClient) -> str:
    """A prompt beyond the context, one beside it that is not, and an answer that fills it."""
    refused, fine = await asyncio.gather(answer(client, "word " * 2000), answer(client))
    assert refused.status_code == 400 and text(fine)
    full = await client.post("/v1/chat/completions", json={**body("Count.", ignore_eos=True), "max_tokens": None})
    assert full.json()["choices"][0]["finish_reason"] == "length", full.text
    await settle(client)
    return f"{refused.status_code}, {refused.json()['error']['message']!r}; an answer filled the context"


async def run(model: str, count: int) -> None:
    """All faults in turn."""
    server = Process(model, "--api-key", "key")
    async with server.client() as client:
        print("bodies:", await withheld_bodies(server.process.pid, server.url, client), flush=True)
        print("connections:", await idle_connections(server.process.pid, server.url, client), flush=True)
        server.process.terminate()
    server = Process(model)
    async with server.client() as client:
        print("constraints:", await costly_constraints(server.process.pid, client), flush=True)
        print("chats:", await long_chats(server.process.pid, client), flush=True)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 60) == 0
    server = Process(model)
    async with server.client() as client:
        print("disconnects:", await disconnects(client, count), flush=True)
        print("flood:", await flood(client), flush=True)
        print("SIGTERM:", await terminate(server, client), flush=True)
    server = Process(model)
    async with server.client() as client:
        expected = await kill(server, client)
    server = Process(model, "--max-model-len", "256")
    async with server.client() as client:
        assert text(await answer(client)) == expected
        print(f"SIGKILL: a new process answers alike, {server.seconds:.1f} s after its start", flush=True)
        print("small context:", await small(client), flush=True)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 60) == 0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-demo")
    parser.add_argument("--count", type=int, default=200, help="clients that leave")
    given = parser.parse_args()
    asyncio.run(run(given.model, given.count))


if __name__ == "__main__":
    main()
