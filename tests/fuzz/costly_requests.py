"""Attacks by requests that are small to send and costly to take in: constraints that take seconds and gigabytes to
compile, schemas that are larger than a pass can ask, and chats that are longer than any context."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from time import perf_counter

import httpx
from health_watch import watched

CONSTRAINTS, CHATS, CHAT = 24, 16, 7_000_000
JSON = {"content-type": "application/json"}
CALM_SECONDS = 10
"""How long the server may take to give memory back."""


def chat(text: str, **more: object) -> dict[str, object]:
    """A request for a short answer."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 16, **more}


def regex(text: str) -> dict[str, object]:
    """A format that is a regular expression."""
    return {"type": "regex", "regex": text}


def schema(value: object) -> dict[str, object]:
    """A format that is a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def hostile(number: int) -> dict[str, object]:
    """A constraint that took seconds and 150 MB, another one that takes minutes, or one that fails late; in turn."""
    patterns = [{"type": "string", "pattern": f"[a-z]*{chr(97 + n)}[a-z]{{{n + 5}}}[0-9]"} for n in range(20)]
    many = {f"p{number}-{n}": {"type": "string"} for n in range(3000)}
    return [
        regex(f"(c{{1000}}){{{900 + number}}}"),
        schema({"allOf": patterns, "description": str(number)}),
        schema({"type": "object", "properties": many}),
    ][number % 3]


async def costly_constraints(process: int, client: httpx.AsyncClient) -> str:
    """Hostile constraints whose clients leave after a second, then the same from clients that stay; others are
    answered."""
    path, fine = "/v1/chat/completions", chat("Name a colour.", response_format=regex("red|green|blue"), temperature=0)
    expected = (await client.post(path, json=fine)).json()["choices"][0]["message"]["content"]
    asked = [json.dumps(chat("a", response_format=hostile(number))).encode() for number in range(CONSTRAINTS)]
    assert (await client.post(path, json=chat("a", response_format=regex("[")))).status_code == 400

    async def ask(body: bytes) -> httpx.Response:
        return await client.post(path, content=body, headers=JSON)

    async with watched(process, client) as watch:  # after its first answer and its first error, which take memory too
        leaving = [asyncio.create_task(ask(body)) for body in asked]
        await asyncio.sleep(1)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        began = perf_counter()
        while (answer := await client.post(path, json=fine)).status_code == 429:
            await asyncio.sleep(0.05)  # until the server has noticed that they left
        found = answer.json()["choices"][0]["message"]["content"]
        seconds = perf_counter() - began
        assert found == expected, found
        staying = await asyncio.gather(*map(ask, asked[:6]))
        assert {each.status_code for each in staying} == {400}, [each.text for each in staying]
        await asyncio.sleep(CALM_SECONDS)
    return (
        f"{CONSTRAINTS} clients left, 6 stayed and were refused; another constraint was answered {seconds:.1f} s after"
        f" they left; {watch.check()}"
    )


async def long_chats(process: int, client: httpx.AsyncClient) -> str:
    """Chats of several megabytes at once."""
    content = json.dumps(chat("some words " * (CHAT // 11))).encode()
    async with watched(process, client) as watch:
        posts = (client.post("/v1/chat/completions", content=content, headers=JSON) for _ in range(CHATS))
        began = perf_counter()
        found = await asyncio.gather(*posts, return_exceptions=True)  # the server closes while they send
        statuses = Counter(one.status_code if isinstance(one, httpx.Response) else type(one).__name__ for one in found)
        seconds = perf_counter() - began
        await asyncio.sleep(CALM_SECONDS)
    assert set(statuses) <= {400, "WriteError", "ReadError"}, statuses
    return f"{CHATS} chats of {CHAT / 1e6:.0f} MB refused in {seconds:.1f} s ({dict(statuses)}); {watch.check()}"
