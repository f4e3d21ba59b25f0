"""MBPP test (tasks 11 to 510): write a Python function that passes the given assertions."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import ANSWER, TaskPrompt, records

SOURCE, LICENCE = "google-research/mbpp", "CC-BY-4.0"


def prompts() -> Iterator[TaskPrompt]:
    """All 500 prompts."""
    for number, record in enumerate(records("mbpp_test.jsonl")):
        tests = "\n".join(record["test_list"])
        text = f"{record['prompt']} Your code should pass these tests:\n\n```python\n{tests}\n```"
        yield TaskPrompt(f"mbpp/{number}", "mbpp", text, program=f"{record['test_setup_code']}\n{ANSWER}\n{tests}\n")
