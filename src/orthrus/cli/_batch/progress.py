"""Progress of a batch: a bar with the remaining time on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from orthrus.cli._batch.output import failed
from orthrus.cli._shared import stderr

LINE_SECONDS = 10.0


class BatchProgress:
    """Counts records. `earlier` of the `total` were done by an earlier run."""

    def __init__(self, total: int, earlier: int) -> None:
        self._total, self._earlier = total, earlier
        self._done = self._failed = self._tokens = 0
        self._started = self._shown = perf_counter()
        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._bar.add_task(str(self), total=total, completed=earlier)

    def __enter__(self) -> BatchProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __str__(self) -> str:
        seconds = perf_counter() - self._started
        left = (self._total - self._earlier - self._done) * seconds / self._done if self._done else None
        eta = "-" if left is None else timedelta(seconds=round(left))
        failures = f", {self._failed} failed" if self._failed else ""
        done = self._earlier + self._done
        return f"{done} of {self._total}{failures}, {self._tokens / max(seconds, 1e-9):.0f} tokens/s, ETA {eta}"

    def count(self, record: Mapping[str, Any]) -> None:
        """Count a record of this run."""
        self._done += 1
        self._failed += failed(record)
        body = (record.get("response") or {}).get("body")
        usage = body.get("usage") if isinstance(body, dict) else None
        self._tokens += (usage or {}).get("completion_tokens") or 0
        self._bar.update(self._task, completed=self._earlier + self._done, description=str(self))
        if not stderr.is_terminal and perf_counter() - self._shown >= LINE_SECONDS:
            stderr.print(str(self), soft_wrap=True)
            self._shown = perf_counter()
