"""`orthrus serve` as a process: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import in_loop
import pytest

from orthrus import cli
from orthrus.cli import serve
from orthrus.serving import http
from orthrus.serving.settings import ServeSettings


@pytest.fixture
def process(model):
    """The server of the tiny model, with one place, and its URL."""
    directory = model.checkpoint.backbone.id
    arguments = [
        directory,
        "--port",
        "0",
        "--max-num-seqs",
        "1",
        "--cycle",
        "ar",
        "--dtype",
        "float32",
        "--api-key",
        "k",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "orthrus", "serve", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    first = started.stdout.readline() + started.stdout.readline()
    yield started, re.search(r"http://[\d.:]+", first)[0], first
    started.kill()
    started.wait()


def ask(url, **options):
    body = {"prompt": "abc", "max_tokens": 400, "temperature": 0, **options}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60, headers={"authorization": "Bearer k"})


def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(process, model):
    started, url, first = process
    assert "2048 tokens of context, 1 request at once" in first
    with ThreadPoolExecutor(8) as pool:
        in_flight = [pool.submit(ask, url) for _ in range(8)]
        while not re.search(r"num_requests_waiting\{.*\} 7\.0", httpx.get(f"{url}/metrics").text):
            assert started.poll() is None
        started.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/health").status_code == 200:
            pass
        refused = ask(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        answers = [each.result() for each in in_flight]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {
        model.generate("abc", raw=True, max_new_tokens=400, cycle="ar").text
    }
    assert started.wait(60) == 0
    logged = [json.loads(line) for line in started.stderr if line.startswith("{")]
    assert sorted(line["status"] for line in logged if line["path"] == "/v1/completions") == [200] * 8 + [503]


def test_a_port_in_use_and_missing_packages_are_told(monkeypatch, capsys):
    def error_of(*arguments):
        monkeypatch.setattr(sys, "argv", ["orthrus", "serve", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} is in use: choose another --port" in error_of("--port", str(port))
    assert "--host nowhere.invalid" in error_of("--host", "nowhere.invalid")
    assert "an API key must be ASCII" in error_of("--api-key", " ")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "the server needs fastapi, which is not installed: pip install 'orthrus-lm[serve]'" in error_of()


def test_the_garbage_collector_does_not_look_at_what_was_loaded(model, monkeypatch):
    """A full collection of a process with torch stops every request for a tenth of a second."""
    frozen = []

    class Server:
        def __init__(self, *_):
            pass

        async def serve(self, _):
            frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(http, "Server", Server)
    transport = in_loop.InLoop(model, ServeSettings(max_model_len=64, cycle="ar"))
    try:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            asyncio.run(serve._serve(transport.service, bound))
    finally:
        gc.unfreeze()
        transport.end()
    assert frozen[0] > 10_000


def test_the_first_request_that_it_prints_is_answered_as_generate_answers(model):
    settings = ServeSettings(served_model_name="tiny", max_model_len=64, cycle="ar")
    transport = in_loop.InLoop(model, settings)
    try:
        shown = serve._welcome(transport.service, 8000)
        body = json.loads(re.search(r"-d '(.*)'", shown, re.DOTALL)[1])
        answer = transport.http.post("/v1/chat/completions", json=body).json()
    finally:
        transport.end()
    assert "sampling:   greedy" in shown
    assert max(map(len, shown.splitlines())) <= 80
    alone = model.generate(serve.QUESTION, max_new_tokens=answer["usage"]["completion_tokens"])
    assert answer["choices"][0]["message"]["content"] == alone.text
