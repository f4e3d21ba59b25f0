"""HumanEval: complete a Python function from its signature and docstring."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import ANSWER, TaskPrompt, records

SOURCE, LICENCE = "openai/human-eval", "MIT"


def prompts() -> Iterator[TaskPrompt]:
    """All 164 prompts."""
    for number, record in enumerate(records("humaneval.jsonl")):
        text = f"Complete the following Python function.\n\n```python\n{record['prompt'].rstrip()}\n```"
        before = record["prompt"].rpartition(f"def {record['entry_point']}")[0]
        program = f"{before}\n{ANSWER}\n{record['test']}\n\ncheck({record['entry_point']})\n"
        yield TaskPrompt(f"humaneval/{number}", "humaneval", text, program=program)
