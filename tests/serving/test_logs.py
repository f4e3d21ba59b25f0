"""Logs: lines for people on a terminal, JSON for programs."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from orthrus.serving import logs

DECODED = {
    "request_id": "5f0c", "client": "127.0.0.1", "method": "POST", "path": "/v1/completions", "status": 200,
    "seconds": 0.5591, "disconnected": False, "prompt_tokens": 34, "cached_tokens": 16, "generated_tokens": 10,
    "passes": 6, "first_token_seconds": 0.0912, "finish_reasons": ["length", "length"],
}  # fmt: skip
REFUSED = {
    "request_id": "5f0c", "client": "127.0.0.1", "method": "GET", "path": "/a\x1b[2J\nb", "status": 404,
    "seconds": 0.001, "disconnected": True, "error": "KeyError",
}  # fmt: skip


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def logged(monkeypatch):
    """What a function logs, on a terminal or elsewhere."""

    def of(log, *, terminal):
        monkeypatch.setattr(sys, "stderr", Stream(terminal=terminal))
        with logs.on_stderr():
            log()
        return sys.stderr.getvalue().splitlines()

    return of


def access(fields):
    return lambda: logging.getLogger(logs.ACCESS).info("request", extra={"fields": fields})


def as_one(lines):
    """Lines that a terminal of 80 columns has, as one."""
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 9) for line in lines[1:])
    return " ".join([lines[0], *map(str.strip, lines[1:])])


def test_a_terminal_gets_a_line_for_people_that_breaks_between_words(logged):
    assert as_one(logged(access(DECODED), terminal=True))[8:] == (
        " 127.0.0.1 POST /v1/completions 200 in 0.56 s; 34 prompt tokens (16 cached), 10 generated in 6 passes;"
        " first token after 0.09 s; finished by length"
    )


def test_a_client_cannot_write_to_the_terminal(logged):
    assert (
        as_one(logged(access(REFUSED), terminal=True))[8:]
        == " 127.0.0.1 GET /a\\x1b[2J\\nb 404 in 0.00 s; the client disconnected; error=KeyError"
    )


def test_a_traceback_stands_below_its_message(logged):
    def fail():
        try:
            {}["what"]
        except KeyError:
            logging.getLogger("orthrus.serving").exception("a pass failed")

    first, *traceback = logged(fail, terminal=True)
    assert first[8:] == " error: a pass failed"
    assert (traceback[0], traceback[-1]) == ("Traceback (most recent call last):", "KeyError: 'what'")


def test_programs_get_json(logged):
    [line] = logged(access(DECODED), terminal=False)
    assert DECODED.items() <= json.loads(line).items()
