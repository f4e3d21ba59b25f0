"""Run the parts one after another, each in its own process and within its time limit; a part that has a file is
done."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from orthrus.bench.gpu.__main__ import ABSENT
from orthrus.bench.gpu.settings import Settings
from orthrus.file_cache import save_json, write_atomically

GRACE = 10.0
"""Seconds between asking a part to end and killing it."""
LEAST = 30.0
"""A part is not started with less time than this, unless its own limit is shorter."""
KEPT = 4000
"""Characters of the output of a part that failed or was killed."""


@dataclass(frozen=True)
class Job:
    """One part as a command: its name, its arguments without SETTINGS and FILE, and its time limit in seconds."""

    name: str
    command: Sequence[str]
    seconds: float


def job(name: str, seconds: float) -> Job:
    """A part of `parts`, as a command."""
    return Job(name, (sys.executable, "-m", "orthrus.bench.gpu", name), seconds)


def run(
    jobs: Sequence[Job], settings: Settings, minutes: float, *, again: bool, tell: Callable[[str], None]
) -> list[str]:
    """Run the parts that have no file, all of them if `again`. Returns the names of those that still have none.

    A part that reaches its own limit is killed and recorded, with what it had measured. One that runs when all the time
    is over is killed too, but not recorded: the next call runs it again.
    """
    began, left = perf_counter(), []
    for own in jobs:
        if not again and (settings.output / f"{own.name}.json").is_file():
            tell(f"{own.name}: already measured")
            continue
        remaining = 60 * minutes - (perf_counter() - began)
        if remaining < min(LEAST, own.seconds):
            left.append(own.name)
            continue
        tell(f"{own.name}: at most {min(own.seconds, remaining):.0f} seconds")
        record = _record(own, replace(settings, seconds=min(own.seconds, remaining)))
        if record["status"] == "time limit" and remaining < own.seconds:
            left.append(own.name)
            tell(f"{own.name}: the time of this call is over")
            continue
        write_atomically(settings.output, {f"{own.name}.json": functools.partial(save_json, content=record)})
        tell(f"{own.name}: {record['status']} after {record['seconds']:.0f} seconds")
    return left


def _record(own: Job, settings: Settings) -> dict[str, Any]:
    """Run one part: its status (done, absent, failed, time limit), its seconds, its result and what it printed."""
    settings.output.mkdir(parents=True, exist_ok=True)
    partial = settings.output / f".{own.name}.partial.json"
    partial.unlink(missing_ok=True)
    given = json.dumps(asdict(settings) | {"output": str(settings.output)})
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if settings.dry_run else {})
    began, now = perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [*own.command, given, str(partial)], stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        ended = _wait(process, settings.seconds)
        seconds = perf_counter() - began
        output.seek(0)
        text = output.read()[-KEPT:]
    status = {0: "done", ABSENT: "absent"}.get(process.returncode, "failed") if ended else "time limit"
    record: dict[str, Any] = {"part": own.name, "status": status, "time": now, "seconds": seconds}
    if partial.is_file():
        record["result"] = json.loads(partial.read_text(encoding="utf-8"))
        partial.unlink()
    return record if status == "done" else record | {"output": text.strip()}


def _wait(process: subprocess.Popen[Any], seconds: float) -> bool:
    """Whether the process ended within its time; otherwise it is killed, with all processes that it started."""
    try:
        process.wait(seconds)
    except BaseException as error:
        for name in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, name)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return False
    return True
