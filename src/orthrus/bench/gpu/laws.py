"""The tests of `tests/gpu`, as far as they come: how many pass, and the output of those that fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthrus.bench.gpu.settings import AbsentError, Settings

FOLDER = Path(__file__).parents[4] / "tests" / "gpu"
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")
KEPT_LINES = 400


def measure(settings: Settings, select: str = "") -> Iterator[dict[str, Any]]:
    """Yields the result after each test. select: an expression of `pytest -k`."""
    if not FOLDER.is_dir():
        raise AbsentError("the tests are not here: this needs a checkout of the repository")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", "-k", select, str(FOLDER)]
    if settings.dry_run:
        command.append("--collect-only")
    process = subprocess.Popen(
        command, cwd=FOLDER.parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    counts: Counter[str] = Counter()
    result: dict[str, Any] = {"counts": counts, "failed": [], "output": []}
    for line in process.stdout:
        result["output"] = [*result["output"], line.rstrip()][-KEPT_LINES:]
        name, _, outcome = line.partition(" ")
        found = next((own for own in OUTCOMES if outcome.startswith(own)), None)
        if "::" in name and found:
            counts[found.lower()] += 1
            if found in ("FAILED", "ERROR"):
                result["failed"].append(name)
            yield result
    result["exit_code"] = process.wait()
    yield result


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in result["counts"].items())
    return counts or (result["output"] or ["no output"])[-1]


def advice(result: dict[str, Any]) -> list[str]:
    """The tests that fail."""
    if result["failed"]:
        return [
            f"{len(result['failed'])} tests fail, the first is {result['failed'][0]} (see `output`): fix them before"
            " believing any figure"
        ]
    if result.get("exit_code"):
        return [f"pytest ended with exit code {result['exit_code']}: see `output`"]
    return []
