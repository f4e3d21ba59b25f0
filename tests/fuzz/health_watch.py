"""Watches a server process during an attack: how long `/health` takes, and how much memory stays taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import httpx
from soak import state_of

SLOWEST, MEGABYTES = 0.1, 50
"""The most seconds that `/health` may take during an attack, and the most memory that may stay taken after it."""


class HealthWatch:
    """What was seen so far: the slowest answer in seconds, their number, and the resident megabytes before, at most and
    after."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.slowest, self.answers = 0.0, 0
        self.before = self.most = self.after = state_of(process)["MB"]

    async def run(self, client: httpx.AsyncClient) -> None:
        """Ask until cancelled."""
        while True:
            began = perf_counter()
            assert (await client.get("/health")).status_code == 200
            self.slowest, self.answers = max(self.slowest, perf_counter() - began), self.answers + 1
            self.most = max(self.most, state_of(self._process)["MB"])
            await asyncio.sleep(0.02)

    def check(self) -> str:
        """What was seen, as text. Raises AssertionError where it is too much."""
        assert self.answers and self.slowest < SLOWEST, f"/health took {self.slowest:.2f} s"
        assert self.after - self.before <= MEGABYTES, f"{self.before} MB before, {self.after} MB after"
        memory = f"{self.before} MB before, {self.most} at most, {self.after} after"
        return f"/health within {1000 * self.slowest:.0f} ms ({self.answers} times), {memory}"


@asynccontextmanager
async def watched(process: int, client: httpx.AsyncClient) -> AsyncIterator[HealthWatch]:
    """Watch a server while the block runs."""
    watch = HealthWatch(process)
    task = asyncio.create_task(watch.run(client))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    watch.after = state_of(process)["MB"]
