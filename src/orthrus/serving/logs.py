"""Logs on stderr: lines for people on a terminal, else one JSON object per line, for programs that collect logs.

They hold no text of prompts or answers unless that is asked for.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

ACCESS = "orthrus.access"
"""The logger of the access log, one record per HTTP request."""


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON; `fields`, given through `extra`, are merged into it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as a line for people. Characters that a terminal would obey are escaped."""

    def __init__(self, columns: Callable[[], int]) -> None:
        """`columns`: of the terminal, which may change meanwhile. Lines break between words there."""
        super().__init__()
        self._columns = columns

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback of an exception below it."""
        fields = getattr(record, "fields", {})
        message = _request(fields) if record.name == ACCESS else " ".join([record.getMessage(), *_named(fields)])
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = _printable(
            f"{datetime.fromtimestamp(record.created):%H:%M:%S} {level}{message}"
        )  # the clock on the wall
        lines = textwrap.wrap(
            line, self._columns(), subsequent_indent=" " * len("00:00:00 "), break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        if record.exc_info:
            lines += map(_printable, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def _request(fields: Mapping[str, Any]) -> str:
    """The access log of a request: who asked what, the status, and what was decoded for it."""
    told = [f"{fields['client']} {fields['method']} {fields['path']} {fields['status']} in {fields['seconds']:.2f} s"]
    if "prompt_tokens" in fields:
        cached = f" ({fields['cached_tokens']} cached)" if fields["cached_tokens"] else ""
        passes = f"{fields['generated_tokens']} generated in {fields['passes']} passes"
        told.append(f"{fields['prompt_tokens']} prompt tokens{cached}, {passes}")
    if fields.get("first_token_seconds") is not None:
        told.append(f"first token after {fields['first_token_seconds']:.2f} s")
    reasons = [str(reason) for reason in fields.get("finish_reasons", ()) if reason]
    told += [f"finished by {', '.join(dict.fromkeys(reasons))}"] if reasons else []
    told += ["the client disconnected"] if fields.get("disconnected") else []
    return "; ".join([*told, *_named({name: fields[name] for name in ("error", "body") if name in fields})])


def _named(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in fields.items()]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _columns() -> int:
    """Of the terminal that stderr is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


@contextmanager
def on_stderr() -> Iterator[None]:
    """Let the server and the HTTP library under it log to stderr, for as long as the command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(_columns) if sys.stderr.isatty() else JsonFormatter())
    levels = {"orthrus": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
    loggers = [logging.getLogger(name) for name in levels]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(levels[logger.name])
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
