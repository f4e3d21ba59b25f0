"""Watches a server process during an attack: how long `/health` takes, and how much memory stays taken.

`/health` is asked by a process of its own (this file), so that an attacker's work does not count as the server's.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter, sleep

import httpx
from soak import state_of

SLOWEST, MEGABYTES, PAUSE = 0.1, 50, 0.02
"""The most seconds that `/health` may take during an attack, the most memory that may stay taken after it, and the
seconds between two questions."""


class HealthWatch:
    """What was seen so far: the seconds of every answer, and the resident megabytes before, at most and after."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.seconds: list[float] = []
        self.before = self.most = self.after = state_of(process)["MB"]

    async def run(self) -> None:
        """Look at the memory until cancelled."""
        while True:
            self.most = max(self.most, state_of(self._process)["MB"])
            await asyncio.sleep(PAUSE)

    def check(self) -> str:
        """What was seen, as text. Raises AssertionError where it is too much."""
        assert self.seconds, "/health was not answered"
        answers = f"/health in {1000 * median(self.seconds):.0f} ms, at most {1000 * max(self.seconds):.0f} ms"
        memory = f"{self.before} MB before, {self.most} at most, {self.after} after"
        seen = f"{answers} ({len(self.seconds)} times), {memory}"
        assert max(self.seconds) < SLOWEST and self.after - self.before <= MEGABYTES, seen
        return seen


@asynccontextmanager
async def watched(process: int, client: httpx.AsyncClient) -> AsyncIterator[HealthWatch]:
    """Watch a server while the block runs."""
    url, pipe = client.base_url, asyncio.subprocess.PIPE
    command = (sys.executable, __file__, url.host, str(url.port))
    asking = await asyncio.create_subprocess_exec(*command, stdout=pipe)
    assert asking.stdout is not None
    await asking.stdout.readline()  # the first answer opens the connection
    watch = HealthWatch(process)
    task = asyncio.create_task(watch.run())
    reading = asyncio.create_task(asking.stdout.read())
    try:
        yield watch
    finally:
        task.cancel()
        alive = asking.returncode is None
        if alive:
            asking.terminate()
        lines = (await reading).decode().split("\n")[:-1]
        await asking.wait()
    assert alive, "/health failed"
    watch.seconds = [float(line) for line in lines]
    watch.after = state_of(process)["MB"]


def ask(host: str, port: int) -> None:
    """Print the seconds of every answer, until an answer is missing or not a good one."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    while True:
        began = perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        print(perf_counter() - began, flush=True)
        sleep(PAUSE)


if __name__ == "__main__":
    ask(sys.argv[1], int(sys.argv[2]))
