"""Streams over a real connection: what reaches the client when, and what happens when either side fails."""

from __future__ import annotations

import asyncio
import json

import pytest
import small_server

from orthrus.serving.app import create_app

ASKED = {
    "chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400},
    "completions": {"prompt": "hello", "max_tokens": 400},
    "responses": {"input": "hello", "max_output_tokens": 400},
}


def run(model, main, **settings):
    async def bounded():
        async with asyncio.timeout(60), small_server.serving(model, create_app, **settings) as (service, client):
            await main(service, client)

    asyncio.run(bounded())


async def events(response):
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


@pytest.mark.parametrize("path", list(ASKED))
def test_a_client_that_leaves_cancels_all_its_choices(model, path):
    async def main(service, client):
        body = {**ASKED[path], "stream": True, "logit_bias": {"319": -100}, "n": 2, "seed": 1}
        if path == "responses":
            body = {key: body[key] for key in body if key not in ("n", "logit_bias")}
        async with client.stream("POST", f"/v1/{path}", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for _ in events(response):
                break
            tickets = list(service._tickets)
        while service.unfinished:
            await asyncio.sleep(0.005)
        assert {ticket.finish_reason for ticket in tickets} == {"cancelled"}

    run(model, main)


@pytest.mark.parametrize("path", list(ASKED))
def test_a_pass_that_fails_ends_a_stream_by_an_error(model, path, monkeypatch):
    async def main(service, client):
        passes, step = 0, service.engine.step

        def failing():
            nonlocal passes
            passes += 1
            if passes == fail_at:
                raise RuntimeError("secret")
            return step()

        monkeypatch.setattr(service.engine, "step", failing)
        body = {**ASKED[path], "stream": True, "seed": 1, "temperature": 1.0}
        fail_at = 1
        response = await client.post(f"/v1/{path}", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "pass_failed")
        passes, fail_at = 0, 4
        async with client.stream("POST", f"/v1/{path}", json=body) as response:
            assert response.status_code == 200
            found = [json.loads(data) async for data in events(response)]
        assert len(found) > 1
        told = found[-1].get("error", found[-1])
        assert told["code"] == "pass_failed"
        assert "secret" not in str(found)
        if path == "responses":
            assert found[-1]["type"] == "error"
            assert found[-1]["sequence_number"] == len(found) - 1
        passes = 10
        assert (await client.post(f"/v1/{path}", json={**body, "stream": False})).status_code == 200

    run(model, main)


def test_a_deadline_that_passes_before_the_first_token(model):
    async def main(_, client):
        for stream in (False, True):
            response = await client.post("/v1/chat/completions", json={**ASKED["chat/completions"], "stream": stream})
            assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")

    run(model, main, request_timeout=1e-6)


def test_chunks_come_one_by_one(model):
    """The first is there while most of the answer is still to come, and characters are whole."""

    async def main(service, client):
        body = {**ASKED["chat/completions"], "stream": True, "seed": 4, "temperature": 2, "logit_bias": {"319": -100}}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            found = [data async for data in events(response)]
        assert found[-1] == "[DONE]"
        assert len(found) > 20
        texts = [json.loads(data)["choices"][0]["delta"].get("content", "") for data in found[:-1]]
        whole = (await client.post("/v1/chat/completions", json={**body, "stream": False})).json()
        assert "".join(texts) == whole["choices"][0]["message"]["content"]

    run(model, main)
