"""Spec-Bench, the common benchmark of lossless acceleration: first turns only, parts interleaved.

The eight categories of ten records each are MT-bench and count as one part, as in the original report.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest

from orthrus.bench.tasks import TaskPrompt, records

SOURCE, LICENCE = "hemingkx/Spec-Bench", "Apache-2.0"
PARTS = ("translation", "summarization", "qa", "math_reasoning", "rag")


def prompts() -> Iterator[TaskPrompt]:
    """All 480 prompts, parts interleaved, so that any limit takes equally many prompts of every part."""
    parts: dict[str, list[TaskPrompt]] = {}
    for number, record in enumerate(records("spec_bench.jsonl")):
        part = record["category"] if record["category"] in PARTS else "mt_bench"
        parts.setdefault(part, []).append(TaskPrompt(f"spec_bench/{number}", part, record["turns"][0]))
    yield from (prompt for prompt in chain(*zip_longest(*parts.values())) if prompt is not None)
