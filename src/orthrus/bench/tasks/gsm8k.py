"""GSM8K test: grade-school word problems, as one user turn each."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import TaskPrompt, records

SOURCE, LICENCE = "openai/grade-school-math", "MIT"


def prompts() -> Iterator[TaskPrompt]:
    """All 1319 prompts."""
    for number, record in enumerate(records("gsm8k_test.jsonl")):
        solution = record["answer"].rpartition("####")[2].strip()
        yield TaskPrompt(f"gsm8k/{number}", "gsm8k", record["question"], number=solution)
