"""The asynchronous engine: many tasks, one thread that owns the model."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
import tiny

from orthrus.config import DecodingConfig
from orthrus.decoding.async_engine import AsyncEngine
from orthrus.decoding.engine import Engine


def engine_of(batch=3):
    config = DecodingConfig(cycle="one-pass", batch_size=batch)
    return Engine(tiny.runner("qwen3"), config, tiny.LIMITS, decode=tiny.text_of)


async def tokens_of(engine, request):
    steps = [step async for step in engine.stream(request)]
    assert steps[-1].sequence.finish_reason
    return [token for step in steps for token in step.kept.tokens]


def test_concurrent_tasks_get_the_tokens_of_their_own_requests():
    requests = [tiny.request(5 + 40 * n, 25, n) for n in range(6)]

    async def run():
        engine = engine_of()
        async with AsyncEngine(engine) as served:
            return engine, await asyncio.gather(*(tokens_of(served, request) for request in requests))

    engine, found = asyncio.run(run())
    assert found == [tiny.oracle(tiny.runner("qwen3"), request).tokens for request in requests]
    assert engine.unfinished == 0 and engine.cache.pages_in_use == 0


def test_leaving_a_stream_cancels_its_request_and_no_other():
    async def run():
        engine = engine_of()
        async with AsyncEngine(engine) as served:
            other = asyncio.create_task(tokens_of(served, tiny.request(30, 30, 1)))
            async with asyncio.timeout(60):
                stream = served.stream(tiny.request(20, 2000))
                async for _ in stream:
                    break
                await stream.aclose()
                found = await other
                while engine.unfinished:
                    await asyncio.sleep(0.01)
            return found, engine.cache.pages_in_use

    assert asyncio.run(run()) == (tiny.oracle(tiny.runner("qwen3"), tiny.request(30, 30, 1)).tokens, 0)


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_what_ends_during_a_pass_is_told_after_it(reason, monkeypatch):
    """Deadlines pass during passes, and `cancel` comes at any time."""
    engine = engine_of()
    index = engine.add(replace(tiny.request(9, 2000), timeout=1000.0))
    engine.step()
    [sequence] = engine.running

    def end(*_):
        if reason == "cancelled":
            engine.cancel(index)
        sequence._deadline = 0.0

    monkeypatch.setattr("orthrus.decoding.engine.learn", end)
    steps = engine.step()
    assert [step.finish_reason for step in steps] == [None, reason]
    assert steps[0].kept.tokens and not steps[1].kept.tokens
    assert engine.unfinished == engine.cache.pages_in_use == 0


def test_an_exception_in_a_pass_reaches_every_stream_and_the_engine_goes_on(monkeypatch):
    async def run():
        engine = engine_of()
        step = engine.step
        async with AsyncEngine(engine) as served:
            monkeypatch.setattr(engine, "step", lambda: 1 / 0)
            results = await asyncio.gather(
                *(tokens_of(served, tiny.request(9, 20, n)) for n in range(2)), return_exceptions=True
            )
            monkeypatch.setattr(engine, "step", step)
            return results, await tokens_of(served, tiny.request(9, 20, 2))

    results, found = asyncio.run(run())
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    assert found == tiny.oracle(tiny.runner("qwen3"), tiny.request(9, 20, 2)).tokens


def test_idle_work_gives_way_to_requests_and_runs_in_their_thread():
    request, started, interrupted = tiny.request(9, 20), asyncio.Event(), []

    async def run():
        loop, threads = asyncio.get_running_loop(), set()

        def work(wanted):
            threads.add(threading.get_ident())
            loop.call_soon_threadsafe(started.set)
            while not wanted():
                time.sleep(0.001)
            interrupted.append(True)
            return 0.01 if len(interrupted) < 3 else None

        engine = engine_of()
        step = engine.step
        engine.step = lambda: threads.add(threading.get_ident()) or step()
        async with AsyncEngine(engine, work, 0.01) as served, asyncio.timeout(60):
            found = []
            for _ in range(3):
                await started.wait()
                found.append(await tokens_of(served, request))
                started.clear()
            await asyncio.sleep(0.1)
            return found, threads, started.is_set()

    found, threads, again = asyncio.run(run())
    assert found == [tiny.oracle(tiny.runner("qwen3"), request).tokens] * 3
    assert len(interrupted) == 3 and not again and len(threads) == 1


def test_idle_work_that_fails_is_given_up(caplog):
    async def run():
        async with AsyncEngine(engine_of(), lambda wanted: 1 / 0, 0.001) as served, asyncio.timeout(60):
            while not caplog.records:
                await asyncio.sleep(0.01)
            return await tokens_of(served, tiny.request(9, 20))

    assert asyncio.run(run()) == tiny.oracle(tiny.runner("qwen3"), tiny.request(9, 20)).tokens
    assert len(caplog.records) == 1 and "ZeroDivisionError" in caplog.text


def test_a_pass_that_hangs_is_seen(monkeypatch):
    async def run():
        engine, entered, release = engine_of(), threading.Event(), threading.Event()
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda: (entered.set(), release.wait(60)) and step())
        async with AsyncEngine(engine) as served:
            assert served.pass_seconds == 0
            found = asyncio.create_task(tokens_of(served, tiny.request(9, 20)))
            assert await asyncio.to_thread(entered.wait, 60)
            await asyncio.sleep(0.02)
            seen = served.pass_seconds
            release.set()
            await found
            return seen

    assert asyncio.run(run()) >= 0.02


def test_a_wrong_request_and_a_closed_engine_are_errors():
    async def run():
        served = AsyncEngine(engine_of())
        with pytest.raises(ValueError, match="the prompt is empty"):
            await tokens_of(served, tiny.request(0, 20))
        served.close()
        with pytest.raises(RuntimeError, match="closed"):
            await tokens_of(served, tiny.request(5, 20))

    asyncio.run(run())
