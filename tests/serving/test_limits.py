"""What stands before the routes, over real connections: keys, ids, sizes, deadlines, hosts, logs, disconnections."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading

import pytest
from small_server import serving

from orthrus.serving import limits
from orthrus.serving.logs import ACCESS, JsonFormatter
from orthrus.serving.settings import ServeSettings
from orthrus.serving.tickets import RequestContext

SMALL = {"prompt": "abc", "new": 4}
JSON = "content-type: application/json"
LONG = {"prompt": "abc", "new": 480}


@pytest.fixture
def access(monkeypatch):
    """The lines of the access log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(JsonFormatter().format(record)))
    logger = logging.getLogger(ACCESS)
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(logging.NOTSET)


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_any_key_opens_the_api_and_nothing_else_does(model):
    async def main():
        async with serving(model, api_keys=("first", "second")) as (service, client):
            for wrong in ("", "first", "Bearer", "Bearer firs", "Bearer first2", "Basic first", "Bearer first second"):
                response = await client.post("/v1/whole", json=SMALL, headers={"authorization": wrong})
                assert error_of(response) == (401, "invalid_api_key"), wrong
                assert response.headers["www-authenticate"] == "Bearer"
            assert error_of(await client.get("/unknown")) == (401, "invalid_api_key")
            for right in ("Bearer first", "bearer second"):
                response = await client.post("/v1/whole", json=SMALL, headers={"authorization": right})
                assert len(response.json()["tokens"]) == 4
            for path in ("/health", "/version", "/metrics"):
                assert (await client.get(path)).status_code == 200
            assert 'orthrus:requests_rejected_total{engine="0"' in service.metrics.exposition().decode()

    asyncio.run(main())


def test_every_key_is_compared_whatever_matches(model, monkeypatch):
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)

    async def main():
        async with serving(model, api_keys=("first", "a much longer key")) as (_, client):
            await client.post("/v1/whole", json=SMALL, headers={"authorization": "Bearer first"})

    asyncio.run(main())
    assert compared == [(32, 32)] * 2


def test_ids_are_taken_over_if_they_are_harmless_and_else_made(model, access):
    async def main():
        async with serving(model) as (_, client):
            found = []
            for given in ("abc-1", "x" * 129, 'a"b', None):
                response = await client.get("/health", headers={} if given is None else {"x-request-id": given})
                found.append(response.headers["x-request-id"])
            return found

    found = asyncio.run(main())
    assert found[0] == "abc-1"
    assert [len(made) for made in found[1:]] == [32] * 3 and len(set(found)) == 4
    assert [line["request_id"] for line in access] == found


def test_large_bodies_are_refused_by_their_length_and_by_what_comes(model):
    async def chunks(size):
        for _ in range(size // 100):
            yield b"x" * 100

    async def main():
        async with serving(model, max_body_bytes=1000) as (_, client):
            assert error_of(await client.post("/v1/whole", content=b"x" * 1001)) == (413, "body_too_large")
            assert error_of(await client.post("/v1/whole", content=chunks(1100))) == (413, "body_too_large")
            padded, kind = json.dumps(SMALL).ljust(1000), {"content-type": "application/json; charset=utf-8"}
            assert (await client.post("/v1/whole", content=padded, headers=kind)).status_code == 200
            named = {"content-type": "application/vnd.api+json"}
            assert (await client.post("/v1/whole", content=json.dumps(SMALL), headers=named)).status_code == 200
            for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/notjson"}):
                response = await client.post("/v1/whole", content=padded, headers=kind)
                assert error_of(response) == (400, "invalid_content_type")

    asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", b"POST /v1/whole HT", b"POST /v1/whole HTTP/1.1\r\nhost: localhost\r\n"])
def test_a_connection_without_a_whole_head_is_closed(model, sent):
    async def main():
        async with serving(model, client_timeout=0.1) as (_, client):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            writer.write(sent)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            assert (await client.get("/health")).status_code == 200

    asyncio.run(main())


def test_a_body_that_does_not_come_is_answered_and_holds_up_nobody(model):
    async def main():
        async with serving(model, client_timeout=0.3) as (_, client):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            writer.write(b"POST /v1/whole HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert (await client.post("/v1/whole", json=SMALL)).status_code == 200
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"body_timeout"' in answer

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/whole", "/v1/stream"])
def test_a_client_that_goes_away_cancels_its_request(model, access, path):
    """Wherever the request is: decoding, or waiting behind another."""

    async def main():
        async with serving(model, max_num_seqs=1) as (service, client):
            calls = [asyncio.create_task(client.post(path, json=LONG)) for _ in range(2)]
            await until(lambda: service.unfinished == 2 and service.engine.running)
            tickets = list(service._tickets)
            for call in calls:
                call.cancel()
            await until(lambda: service.unfinished == service.engine.unfinished == 0)
            assert [ticket.finish_reason for ticket in tickets] == ["cancelled"] * 2
            assert all(ticket.progress.generated < 480 for ticket in tickets)
            await until(lambda: len(access) == 2)
            assert (await client.post(path, json=SMALL)).status_code == 200
            return service.metrics.exposition().decode()

    exposed = asyncio.run(main())
    assert 'vllm:request_success_total{engine="0",finished_reason="abort"' in exposed
    assert [line["disconnected"] for line in access] == [True, True, False]
    assert {line["status"] for line in access if line["disconnected"]} == {200 if path == "/v1/stream" else 499}


def test_a_client_that_goes_away_before_its_request_is_submitted_cancels_it(model):
    """Its prompt is still being encoded then."""

    async def main():
        async with serving(model) as (service, _):
            context = RequestContext("id", gone=True)
            tickets = service.submit([model.request("abc", {"raw": True, "max_new_tokens": 480})] * 2, context)
            await until(lambda: service.unfinished == service.engine.unfinished == 0)
            assert [ticket.finish_reason for ticket in tickets] == ["cancelled"] * 2
            assert context.disconnected

    asyncio.run(main())


def test_an_unexpected_failure_has_the_id_of_its_request(model, access, monkeypatch):
    async def main():
        async with serving(model) as (service, client):
            monkeypatch.setattr(service, "submit", lambda *_: 1 / 0)
            response = await client.post("/v1/whole", json=SMALL, headers={"x-request-id": "mine"})
            assert error_of(response) == (500, "internal_error")
            assert response.headers["x-request-id"] == "mine"

    asyncio.run(main())
    assert [(line["status"], line["error"]) for line in access] == [(500, "ZeroDivisionError")]


def test_a_reader_that_stops_holds_up_nobody(model):
    async def main():
        async with serving(model, client_timeout=0.2) as (service, client):
            body = json.dumps(LONG).encode()
            _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1)
            writer.transport.pause_reading()
            head = "POST /v1/stream HTTP/1.1", "host: localhost", f"content-length: {len(body)}", JSON, "", ""
            writer.write("\r\n".join(head).encode() + body)
            await until(lambda: service.unfinished == 1)
            assert (await client.post("/v1/whole", json=SMALL)).status_code == 200
            await until(lambda: service.unfinished == 0)  # decoded to its end: a ticket keeps what is not read
            writer.close()

    asyncio.run(main())


def test_a_reader_that_takes_nothing_is_cut_off(model):
    async def main():
        async with serving(model, client_timeout=0.2) as (service, client):
            _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, limit=1)
            writer.transport.pause_reading()
            writer.write(b"GET /flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
            async with asyncio.timeout(60):
                await until(lambda: getattr(service.app.state, "flooded", False))
            writer.close()

    asyncio.run(main())


def test_a_request_ends_at_its_deadline(model, access):
    async def main():
        async with serving(model, request_timeout=0.05) as (service, client):
            await client.post("/v1/whole", json=LONG)
            return service.metrics.exposition().decode()

    exposed = asyncio.run(main())
    assert access[0]["finish_reasons"] == ["timeout"] and access[0]["generated_tokens"] < 480
    assert re.search(r'request_success_total\{.*finished_reason="timeout".*\} 1\.0', exposed)


def test_a_second_signal_ends_what_is_left(model):
    async def main():
        async with serving(model, drain_timeout=3600.0) as (service, client):
            call = asyncio.create_task(client.post("/v1/whole", json=LONG))
            await until(lambda: service.engine.running)
            [ticket] = service._tickets
            service.server.drain()
            await until(lambda: service.draining)
            assert not ticket.done
            service.server.drain()
            await until(lambda: ticket.done)
            await call
            return ticket.finish_reason

    assert asyncio.run(main()) == "cancelled"


def test_names_that_point_at_this_machine_are_refused(model):
    async def main():
        async with serving(model, allowed_hosts=("box.example",)) as (_, client):
            for host, status in (("evil.example", 403), ("box.example:80", 200), ("LOCALHOST", 200), ("[::1]:1", 200)):
                assert (await client.get("/health", headers={"host": host})).status_code == status, host

    asyncio.run(main())
    assert limits._host_allowed("evil.example", ServeSettings(host="0.0.0.0"))
    assert not limits._host_allowed("evil.example", ServeSettings(host="0.0.0.0", allowed_hosts=("box.example",)))


def test_pages_of_other_origins_may_call_only_where_they_are_allowed(model):
    async def main():
        async with serving(model) as (_, client):
            own = {"origin": f"http://{client.base_url.netloc.decode()}"}
            assert (await client.post("/v1/whole", json=SMALL, headers=own)).status_code == 200
            place = f"localhost:{client.base_url.port}"
            named = {"host": place, "origin": f"http://{place.upper()}"}  # names of hosts have no case
            assert (await client.post("/v1/whole", json=SMALL, headers=named)).status_code == 200
            other = {"origin": "http://evil.example"}
            assert error_of(await client.post("/v1/whole", json=SMALL, headers=other)) == (403, "origin_not_allowed")
        async with serving(model, allowed_origins=("https://page.example",)) as (_, client):
            page = {"origin": "https://page.example"}
            response = await client.post("/v1/whole", json=SMALL, headers=page)
            assert response.headers["access-control-allow-origin"] == "https://page.example"
            sent = "authorization, x-stainless-lang"  # as OpenAI's own client for browsers does
            ask = {**page, "access-control-request-method": "POST", "access-control-request-headers": sent}
            assert (await client.options("/v1/whole", headers=ask)).status_code == 200

    asyncio.run(main())


def test_the_log_counts_tokens_and_holds_no_text(model, access):
    async def main():
        for log_prompts in (False, True):
            async with serving(model, log_prompts=log_prompts) as (_, client):
                await client.post(
                    "/v1/whole?secret=1", json={"prompt": "hidden", "new": 4}, headers={"x-request-id": "a"}
                )

    asyncio.run(main())
    line = access[0]
    assert (line["request_id"], line["method"], line["path"], line["status"]) == ("a", "POST", "/v1/whole", 200)
    assert (line["generated_tokens"], line["finish_reasons"], line["disconnected"]) == (4, ["length"], False)
    assert line["prompt_tokens"] == len(model.request("hidden", {}).prompt)
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert "hidden" not in json.dumps(line) and "secret" not in json.dumps(line)
    assert json.loads(access[1]["body"]) == {"prompt": "hidden", "new": 4}


def test_a_full_queue_says_when_to_come_back(model):
    async def main():
        async with serving(model, max_num_seqs=1, max_queue=1) as (_, client):
            flood = await asyncio.gather(*(client.post("/v1/whole", json={**LONG, "new": 60}) for _ in range(20)))
            refused = [response for response in flood if response.status_code == 429]
            served = [response for response in flood if response.status_code == 200]
            assert len(refused) + len(served) == 20 and len(served) >= 2
            assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
            assert len({str(response.json()["tokens"]) for response in served}) == 1

    asyncio.run(main())


def test_a_failed_pass_is_a_500_and_the_next_request_is_served(model, monkeypatch):
    async def main():
        async with serving(model) as (service, client):
            monkeypatch.setattr(service.engine, "step", lambda: 1 / 0)
            assert (await client.post("/v1/whole", json=SMALL)).status_code == 500
            monkeypatch.undo()
            assert (await client.get("/health")).status_code == 200
            return (await client.post("/v1/whole", json=SMALL)).json()["tokens"]

    assert asyncio.run(main()) == model.generate("abc", max_new_tokens=4, cycle="ar").tokens


def test_while_draining_new_work_is_refused_and_old_work_ends(model):
    async def main():
        async with serving(model, drain_timeout=60.0) as (service, client):
            call = asyncio.create_task(client.post("/v1/whole", json=LONG))
            await until(lambda: service.engine.running)
            draining = asyncio.create_task(service.drain(60))
            await until(lambda: service.draining)
            assert (await client.get("/health")).json() == {"status": "draining"}
            assert (await client.get("/metrics")).status_code == 200
            assert error_of(await client.post("/v1/whole", json=SMALL)) == (503, "shutting_down")
            await draining
            return len((await call).json()["tokens"])

    assert asyncio.run(main()) == 480


def test_a_server_whose_pass_hangs_is_unhealthy_until_it_ends(model, monkeypatch):
    async def main():
        async with serving(model, pass_timeout=0.05) as (service, client):
            release, step = threading.Event(), service.engine.step
            monkeypatch.setattr(service.engine, "step", lambda: release.wait(60) and step())
            assert (await client.get("/health")).json() == {"status": "ok"}
            call = asyncio.create_task(client.post("/v1/whole", json=SMALL))
            await until(lambda: service.stuck)
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "stuck"})
            monkeypatch.undo()
            release.set()
            found = (await call).json()["tokens"]
            assert (await client.get("/health")).status_code == 200
            return found

    assert asyncio.run(main()) == model.generate("abc", max_new_tokens=4, cycle="ar").tokens


def test_a_pass_that_hangs_does_not_hold_up_the_end(model, monkeypatch):
    monkeypatch.setattr("orthrus.serving.service.SECONDS_OF_A_PASS", 0.1)
    release = threading.Event()

    async def main():
        async with serving(model, pass_timeout=0.05) as (service, client):
            monkeypatch.setattr(service.engine, "step", lambda: release.wait(60) and [])
            call = asyncio.create_task(client.post("/v1/whole", json=SMALL))
            await until(lambda: service.stuck)
            await asyncio.wait_for(service.drain(0), 30)
            release.set()
            assert (await call).json() == {"tokens": []}

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_is_unhealthy(model, monkeypatch):
    async def main():
        async with serving(model) as (service, client):
            monkeypatch.setattr(service.engine, "step", lambda: exec("raise SystemExit"))
            call = asyncio.create_task(client.post("/v1/whole", json=SMALL))
            await until(lambda: not service.healthy)
            assert (await client.get("/health")).json() == {"status": "dead"}
            assert (await client.post("/v1/whole", json=SMALL)).status_code == 500
            assert (await call).status_code == 500

    asyncio.run(main())
