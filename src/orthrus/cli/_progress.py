"""Progress of a distillation: a bar on a terminal, otherwise a line on stderr every few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from orthrus.cli._shared import stderr

if TYPE_CHECKING:
    from orthrus.training.distill import Reply, Shard

LINE_SECONDS = 10.0
"""Minimum time between two progress lines when stderr is not a terminal."""


class DistillProgress:
    """Finished prompts, tokens per second, and the estimated remaining time."""

    def __init__(self, total: int) -> None:
        self.total, self.kept = total, 0
        self._done = self._resumed = self._tokens = 0
        self._started = self._shown = perf_counter()
        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._bar.add_task(str(self), total=total)

    def __enter__(self) -> DistillProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __str__(self) -> str:
        new = self._done - self._resumed
        left = (self.total - self._done) * self.seconds / new if new else None
        eta = "-" if left is None else timedelta(seconds=round(left))
        return f"{self._done} of {self.total} prompts, {self._tokens / self.seconds:.0f} tokens/s, ETA {eta}"

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._started

    def replies(self, given: Iterator[tuple[int, Reply]]) -> Iterator[tuple[int, Reply]]:
        """Yield the replies unchanged and count their tokens."""
        if self._resumed and not self._tokens:
            stderr.print(f"resuming: {self._resumed} of {self.total} prompts are already done")
        for index, reply in given:
            self._tokens += len(reply.tokens)
            self._show()
            yield index, reply

    def prompts(self, done: int) -> None:
        """Set the number of finished prompts."""
        self._done = done
        self._show()

    def shard(self, shard: Shard, line: str) -> None:
        """Count a complete shard, and print `line` unless an earlier run wrote the shard."""
        self._resumed += shard.prompts - self.kept if shard.existing else 0
        self._done = self.kept = shard.prompts
        if not shard.existing:
            stderr.print(line if stderr.is_terminal else f"{line}; {self}", markup=False, soft_wrap=True)
            self._shown = perf_counter()
        self._show()

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._done, description=str(self))
        if not stderr.is_terminal and perf_counter() - self._shown >= LINE_SECONDS:
            stderr.print(str(self), soft_wrap=True)
            self._shown = perf_counter()
