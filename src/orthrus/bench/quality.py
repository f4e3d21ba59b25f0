"""Are the answers right? By plain decoding and by any other cycle: as the tokens are equal, so must the scores be.

Code that a model wrote runs in a process of its own with limits of time, memory and files, an empty environment and a
temporary folder. That keeps accidents small; it is no sandbox.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orthrus.api import Model, Options
from orthrus.bench.tasks import ANSWER, TaskPrompt

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CODE = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
SECONDS, MEMORY, FILE = 10, 2**30, 2**20
"""Limits of one answer's run: seconds, bytes of memory, bytes of a file."""


@dataclass(frozen=True)
class Score:
    """How many answers were right, and how many were, token for token, those of the first cycle."""

    cycle: str
    prompts: int
    right: int
    identical: int


def right(prompt: TaskPrompt, text: str) -> bool:
    """Whether an answer is right: its last number, or what its first block of code does.

    Raises ValueError where the task says of neither what is right.
    """
    if prompt.number is not None:
        return last_number(text) == last_number(prompt.number)
    if prompt.program is None:
        raise ValueError(f"{prompt.part}: this task does not say what a right answer is; gsm8k, humaneval and mbpp do")
    return runs(prompt.program.replace(ANSWER, code_of(text)))


def last_number(text: str) -> float | None:
    """The last number in a text."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def code_of(text: str) -> str:
    """The first fenced block, or the whole text where there is none."""
    found = CODE.search(text)
    return found.group(1) if found else text


def runs(program: str) -> bool:
    """Whether a program ends by itself, without an error, within the limits."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program], cwd=folder, env={}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False, preexec_fn=_limit,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, ValueError):  # ValueError: a null character in the program
            return False
    return done.returncode == 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))


def measure(
    model: Model,
    prompts: list[TaskPrompt],
    options: Options,
    cycles: list[str],
    track: Callable[[Iterable[TaskPrompt]], Iterable[TaskPrompt]],
) -> list[Score]:
    """Answer every prompt by every cycle and judge it."""
    scores = [[0, 0] for _ in cycles]
    answers = [model.results([p.prompt for p in prompts], **options | {"cycle": cycle}) for cycle in cycles]
    for prompt in track(prompts):
        results = [next(answer)[1] for answer in answers]
        for score, result in zip(scores, results, strict=True):
            score[0] += right(prompt, result.text)
            score[1] += result.tokens == results[0].tokens
    return [Score(cycle, len(prompts), *score) for cycle, score in zip(cycles, scores, strict=True)]
