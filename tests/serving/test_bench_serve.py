"""`orthrus bench serve`: against our server, and against servers that fail or report less."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from orthrus import cli
from orthrus.bench.http_client import LineSplitter, Outcome, Target
from orthrus.bench.serve import Load, Objectives, arrivals, measure, percentile, summarise
from orthrus.serving.app import create_app
from orthrus.serving.http import bind
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings


@contextmanager
def in_thread(app):
    """The URL of a server of an app."""
    bound = bind(ServeSettings(port=0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    yield "http://{}:{}".format(*bound.getsockname())
    server.should_exit = True
    thread.join()


def run(monkeypatch, capsys, *arguments, code=0):
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["orthrus", "bench", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    return capsys.readouterr()


def test_the_command_measures_our_server(model, monkeypatch, capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(3)))
    service = Service(model, ServeSettings(cycle="one-pass", served_model_name="tiny"))
    with in_thread(create_app(service)) as url:
        options = ["--url", url, "--prompts", str(prompts), "--count", "4", "--max-tokens", "24", "--warmup", "1"]
        shown = run(monkeypatch, capsys, *options, "-c", "2", "-r", "50", "--json")
        report = json.loads(shown.out)
        table = run(monkeypatch, capsys, *options, "--completions", "-n", "2").out
    asyncio.run(service.drain(0))
    assert "warning" not in shown.err
    assert set(report["serve"]) == {"2 at once", "50 per second"}
    for [own] in report["serve"].values():
        assert (own["complete"], own["errors"], own["counted_by"], own["wrong_counts"]) == (4, {}, "usage", 0)
        assert own["completion_tokens"] == own["server_tokens"] == 4 * 24
        assert own["tokens_per_pass"] > 1 and 0 < own["accepted"] <= 1
        assert own["first_token"]["p50"] <= own["latency"]["p50"]
    assert report["provenance"]["model"] == "tiny"
    assert "1 at once" in table and "tokens per pass" in table


def faulty(kind):
    """An app whose answers are wrong in one way."""
    chunk = {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}
    end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}
    events = {
        "no usage": [chunk, chunk, end],
        "wrong usage": [chunk, end, usage],
        "error event": [chunk, {"error": {"message": "x", "code": "pass_failed"}}],
        "incomplete": [chunk],
        "empty": [end, usage],
        "malformed": [chunk, None],
    }

    async def answer(request):
        if kind == "429":
            return JSONResponse({"error": {}}, 429)
        lines = [f"data: {json.dumps(data) if data else '{'}\n\n" for data in events[kind]]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


@pytest.mark.parametrize(
    ("kind", "errors"),
    [
        ("429", {"HTTP 429": 2}),
        ("error event", {"error event: pass_failed": 2}),
        ("incomplete", {"incomplete answer": 2}),
        ("empty", {"empty answer": 2}),
        ("malformed", {"malformed event: JSONDecodeError": 2}),
        ("no usage", {}),
        ("wrong usage", {}),
    ],
)
def test_what_goes_wrong_is_counted_by_kind(kind, errors):
    with in_thread(faulty(kind)) as url:
        target = Target(url, "m", {"max_tokens": 2})
        summary = asyncio.run(measure(target, ["a", "b"], Load(concurrency=2), Objectives()))
    assert summary.errors == errors
    assert summary.complete == 2 - sum(errors.values())
    assert summary.server_tokens is None
    if not errors:
        assert summary.counted_by == ("chunks" if kind == "no usage" else "usage")
        assert summary.wrong_counts == (2 if kind == "wrong usage" else 0)


def test_a_server_that_is_not_there(monkeypatch, capsys):
    with bind(ServeSettings(port=0)) as bound:
        url = "http://{}:{}".format(*bound.getsockname())
        target = Target(url, "m", {})
        summary = asyncio.run(measure(target, ["a"], Load(rate=100.0), Objectives()))
        assert summary.errors == {"connection: ConnectError": 1} and summary.first_token is None
        shown = run(monkeypatch, capsys, "--url", url, code=2)
    assert "no server answers at" in shown.err


def test_figures_of_known_outcomes():
    def outcome(first, gap, tokens):
        chunks = [10.0 + first + gap * n for n in range(3)]
        return Outcome(10.0, chunks, chunks[-1] + 0.1, 5, 0, tokens, "stop")

    outcomes = [outcome(0.1, 0.2, 5), outcome(0.5, 0.1, 3), Outcome(10.0, error="timeout")]
    gained = {"vllm:generation_tokens_total": 8.0, "vllm:spec_decode_num_accepted_tokens_total": 4.0}
    gained["vllm:spec_decode_num_draft_tokens_total"] = 16.0
    summary = summarise("x", outcomes, 2.0, Objectives(first_token=0.2, per_token=0.15), 64, gained)
    assert (summary.complete, summary.errors, summary.tokens_per_second) == (2, {"timeout": 1}, 4.0)
    assert summary.goodput == 0.5  # the second one's first token is late
    assert summary.between_tokens.p50 == pytest.approx(0.1)
    assert summary.between_chunks.p50 == pytest.approx(0.15)
    assert summary.first_token.p99 == pytest.approx(0.496)
    assert (summary.tokens_per_pass, summary.accepted, summary.server_tokens) == (2.0, 0.25, 8)
    assert percentile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_arrivals_are_the_same_for_a_seed_and_as_many_as_asked():
    times = arrivals(20.0, 2000, 3)
    assert times == arrivals(20.0, 2000, 3) != arrivals(20.0, 2000, 4)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(100.0, rel=0.1)


def test_lines_end_at_line_feeds_alone():
    """JSON may hold characters at which Python splits lines too."""
    split, text = LineSplitter(), 'data: "a\u2028b\x85c"\r\n\r\ndata: "\u00e9"\n'
    data = text.encode()
    found = [line for at in range(0, len(data), 3) for line in split.add(data[at : at + 3])]
    assert found == ['data: "a\u2028b\x85c"', "", 'data: "\u00e9"']
