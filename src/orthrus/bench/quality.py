"""Accuracy of the answers of every cycle. All cycles generate the same tokens, so all scores must be equal.

Code that a model wrote runs in its own process with limits on time, memory and file size, an empty environment and a
temporary folder. That limits accidents; it is no sandbox.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orthrus.api import Model, Options
from orthrus.bench.tasks import ANSWER, TaskPrompt

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CODE = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
SECONDS, MEMORY, FILE = 10, 2**30, 2**20
"""Limits for running one answer: seconds, bytes of memory, bytes of a file."""


@dataclass(frozen=True)
class Score:
    """How many answers were right, and how many had the same tokens as those of the first cycle."""

    cycle: str
    prompts: int
    right: int
    identical: int


def check(task: str | None, prompts: Sequence[TaskPrompt], *, allow_code_execution: bool) -> None:
    """Raise ValueError where the answers to a task cannot be checked, or where that runs code and nobody allowed it."""
    if not prompts:
        raise ValueError("there are no answers to score: name a task (--task humaneval)")
    if any(prompt.program for prompt in prompts) and not allow_code_execution:
        raise ValueError(f"{task} runs code that the model wrote, outside a sandbox: pass --allow-code-execution")
    for prompt in prompts:
        _need_right_answer(prompt)


def _need_right_answer(prompt: TaskPrompt) -> None:
    if prompt.number is None and prompt.program is None:
        raise ValueError(f"{prompt.part}: this task does not say what a right answer is; gsm8k, humaneval and mbpp do")


def right(prompt: TaskPrompt, text: str) -> bool:
    """Whether an answer is right: by its last number, or by running its first code block.

    Raises ValueError if the task defines no right answer.
    """
    _need_right_answer(prompt)
    if prompt.number is not None:
        number = last_number(text)
        return number is not None and number == last_number(prompt.number)
    return runs(str(prompt.program).replace(ANSWER, code_of(text)))


def last_number(text: str) -> float | None:
    """The last number in a text."""
    numbers = NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def code_of(text: str) -> str:
    """The first fenced code block, or the whole text if there is none."""
    block = CODE.search(text)
    return block.group(1) if block else text


def runs(program: str) -> bool:
    """Whether a program exits without an error within the limits."""
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
    """Answer every prompt with every cycle, and score the answers."""
    scores = [[0, 0] for _ in cycles]
    answers = [model.results([p.prompt for p in prompts], **options | {"cycle": cycle}) for cycle in cycles]
    for prompt in track(prompts):
        results = [next(answer)[1] for answer in answers]
        for score, result in zip(scores, results, strict=True):
            score[0] += right(prompt, result.text)
            score[1] += result.tokens == results[0].tokens
    return [Score(cycle, len(prompts), *score) for cycle, score in zip(cycles, scores, strict=True)]
