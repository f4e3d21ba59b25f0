"""MATH-500: competition problems."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import TaskPrompt, records

SOURCE, LICENCE = "openai/prm800k (split of hendrycks/MATH)", "MIT"


def prompts() -> Iterator[TaskPrompt]:
    """All 500 prompts."""
    for number, record in enumerate(records("math500.jsonl")):
        yield TaskPrompt(f"math500/{number}", "math500", record["problem"])
