"""Gaps in source files to fill in: 100 places in Python, JavaScript and Rust, whole lines or the rest of one."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import TaskPrompt, records
from orthrus.prompt_files import Gap

SOURCE = "places in anyio, httptools, fastify, click and safetensors"
LICENCE = "MIT (the first three), BSD-3-Clause, Apache-2.0"


def prompts() -> Iterator[TaskPrompt]:
    """All 100 gaps. They need a model that can fill in the middle."""
    for record in records("fim.jsonl"):
        yield TaskPrompt(record["id"], record["language"], Gap(record["prompt"], record["suffix"]))
