"""`orthrus batch`: records of a local model and of a server, going on after an interruption, and exit codes."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import subprocess
import sys
import time

import httpx
import pytest
import tiny
from scripted_server import TEXT, ScriptedServer, served

import orthrus
from orthrus.cli._batch import output, runner
from orthrus.cli._batch.requests import BatchRequest


def line(name, body, url="/v1/chat/completions", **fields):
    return {"custom_id": name, "method": "POST", "url": url, "body": body} | fields


def chat(name, text, **fields):
    return line(name, {"messages": [{"role": "user", "content": text}], **fields})


@pytest.fixture
def write(tmp_path):
    def call(*records):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return call


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def records(path):
    return {record["custom_id"]: record for record in map(json.loads, path.read_text().splitlines())}


def content(record):
    return record["response"]["body"]["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tiny.save_checkpoint(tmp_path_factory.mktemp("batch") / "model"))


def test_a_local_batch_answers_as_the_model_does_and_counts_failures(run, write, out, path):
    file = write(
        chat("greedy", "hi", max_tokens=6, temperature=0),
        chat("sampled", "hi", max_tokens=6, temperature=0.8, seed=3, n=2),
        line("text", {"prompt": "hi", "max_tokens": 4, "temperature": 0}, url="/v1/completions"),
        chat("wrong", "hi", max_tokns=6),
        chat("streamed", "hi", stream=True),
        {"prompt": "hi"},
        {"id": "own", "messages": [{"role": "user", "content": "hi"}]},
    )
    options = ["--model", path, "--cycle", "two-pass", "--max-tokens", 5, "--batch-size", 3]
    code, told, err = run("batch", file, "--output", out, *options)
    found = records(out)
    assert code == 2
    assert told == f"5 of 7 requests are answered in {out}\n"
    assert "2 failed: --retry-failed sends them again. The first, " in err
    model = orthrus.load(path)
    messages = [{"role": "user", "content": "hi"}]
    assert content(found["greedy"]) == model.generate(messages, max_new_tokens=6).text
    for index, choice in enumerate(found["sampled"]["response"]["body"]["choices"]):
        asked = model.generate(messages, max_new_tokens=6, temperature=0.8, seed=3, sample_index=index)
        assert choice["message"]["content"] == asked.text
    text = found["text"]["response"]["body"]["choices"][0]["text"]
    assert text == model.generate("hi", raw=True, max_new_tokens=4).text
    assert content(found["line-6"]) == content(found["own"]) == model.generate(messages, max_new_tokens=5).text
    assert found["wrong"]["response"]["status_code"] == 400
    assert found["wrong"]["response"]["body"]["error"]["param"] == "max_tokns"
    assert found["streamed"]["response"]["body"]["error"]["param"] == "stream"
    assert found["greedy"]["error"] is None


@pytest.fixture
def server():
    made = ScriptedServer()
    with served(made.app) as made.address:
        yield made


def asked(server):
    return sorted(body["messages"][-1]["content"] for body in server.bodies)


def test_a_batch_goes_on_where_it_ended(run, write, out, server):
    command = ["batch", write(*(chat(f"r{n}", f"q{n}") for n in range(6))), "-o", out, "--url", server.address]
    run("batch", write(*(chat(f"r{n}", f"q{n}") for n in range(3))), "-o", out, "--url", server.address)
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])  # the last record is torn
    server.bodies.clear()
    write(*(chat(f"r{n}", f"q{n}") for n in range(6)))
    code, _, err = run(*command)
    assert code == 0
    assert "the last record was cut off" in err
    assert "resuming: 2 of 6" in err
    assert len(server.bodies) == 4
    assert len(out.read_text().splitlines()) == 6
    assert {content(record) for record in records(out).values()} == {TEXT}
    out.write_bytes(out.read_bytes().rstrip(b"\n"))  # whole, but without its end
    server.bodies.clear()
    assert run(*command)[0] == 0
    assert server.bodies == []
    assert len(records(out)) == 6


def test_failed_requests_are_kept_or_sent_again(run, write, out, server):
    command = ["batch", write(chat("good", "q"), chat("bad", "500")), "--output", out, "--url", server.address]
    assert run(*command)[0] == 1
    assert run(*command)[0] == 1
    assert asked(server) == ["500", "q"]
    assert run(*command, "--retry-failed")[0] == 1
    assert asked(server) == ["500", "500", "q"]
    assert len(out.read_text().splitlines()) == 2


def test_a_body_that_is_no_json_fails_alone(run, write, out, server):
    given = write(chat("nan", "a", temperature=float("nan")), chat("good", "b"))
    assert run("batch", given, "--output", out, "--url", server.address)[0] == 1
    found = records(out)
    assert found["nan"]["response"]["body"]["error"]["code"] == "invalid_json"
    assert content(found["good"]) == TEXT


def test_a_busy_server_is_asked_again(run, write, out, server):
    server.busy = 2
    assert run("batch", write({"prompt": "busy"}), "--output", out, "--url", server.address)[0] == 0
    assert asked(server) == ["busy"] * 3
    assert (server.bodies[0]["model"], server.bodies[0]["max_tokens"]) == ("scripted", 256)


def test_a_wrong_key_stops_the_batch(run, write, out, server):
    code, _, err = run("batch", write(chat("a", "401"), chat("b", "401")), "--output", out, "--url", server.address)
    assert code == 1
    assert "give its key with --api-key; 0 of 2" in err
    assert out.read_bytes() == b""


def test_a_server_that_is_gone_stops_the_batch(monkeypatch):
    monkeypatch.setattr(runner, "LOST_WAITS", (0.0, 0.0))
    tries, kept = [], []

    def gone(request):
        tries.append(request)
        raise httpx.ConnectError("refused")

    async def call():
        async with httpx.AsyncClient(transport=httpx.MockTransport(gone), base_url="http://gone") as client:
            await runner.BatchRunner(client, 2, kept.append).run([BatchRequest(str(n), "/v1", {}) for n in range(5)])

    with pytest.raises(runner.BatchStopped, match="no answer from http://gone"):
        asyncio.run(call())
    assert 3 <= len(tries) <= 6
    assert kept == []


def test_ctrl_c_leaves_whole_records_and_the_command_goes_on(run, write, out, server):
    file = write(*(chat(f"r{n}", "q") for n in range(3)), chat("slow", "hang"))
    command = ["batch", str(file), "--output", str(out), "--url", server.address, "--concurrency", "2"]
    process = subprocess.Popen([sys.executable, "-m", "orthrus", *command], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (
        not out.exists() or out.read_bytes().count(b"\n") < 3 or "hang" not in asked(server)
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; 3 of 4" in " ".join(err.split())
    assert set(records(out)) == {"r0", "r1", "r2"}
    write(*(chat(f"r{n}", "q") for n in range(3)), chat("slow", "now"))
    assert run(*command)[0] == 0
    assert set(records(out)) == {"r0", "r1", "r2", "slow"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([chat("a", "x"), chat("a", "y")], "line 2: the custom_id 'a' occurs twice"),
        ([line("a", {}, url="/v1/embeddings")], "line 1: the url is '/v1/embeddings'"),
        ([line("a", {}, method="GET")], "the method is 'GET'"),
        ([line(None, {})], "needs a custom_id"),
        ([line("a", [])], "needs a body"),
        ([{"text": "x"}], "needs `prompt`"),
        ([], "no requests in it"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_anything_is_done(run, write, out, given, told):
    code, _, err = run("batch", write(*given), "--output", out)
    assert code == 2
    assert told in err
    assert not out.exists()


def test_another_file_is_not_taken_for_an_output(run, write, out):
    out.write_text("notes\nmore notes\n")
    code, _, err = run("batch", write(chat("a", "x")), "--output", out)
    assert code == 2
    assert "not valid JSON" in err
    assert out.read_text() == "notes\nmore notes\n"


def test_a_full_disk_is_named_with_the_file(run, write, out, server, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    code, _, err = run("batch", write(chat("a", "x")), "--output", out, "--url", server.address)
    assert (code, "No space left on device" in err, str(out) in err.replace("\n", "")) == (1, True, True)


def test_a_missing_file_is_named_without_the_number_of_the_error(run, out, tmp_path):
    missing = tmp_path / "missing.jsonl"
    expected = f"orthrus: {missing}: no such file; give a JSONL file, or - for standard input"
    assert run("batch", missing, "-o", out) == (2, "", expected)


@pytest.mark.parametrize(
    "option", [["--adapter", "a"], ["--cycle", "ar"], ["--rule", "rejection"], ["--quantize", "int8"]]
)
def test_options_of_a_local_model_are_refused_with_a_server(run, write, out, option):
    code, _, err = run("batch", write(chat("a", "x")), "--output", out, "--url", "http://127.0.0.1:9", *option)
    assert (code, "the model is the server's" in err, out.exists()) == (2, True, False)


def test_the_model_of_a_server_may_be_named(run, write, out, server):
    assert run("batch", write({"prompt": "hi"}), "--output", out, "--url", server.address, "--model", "second")[0] == 0
    assert server.bodies[-1]["model"] == "second"
