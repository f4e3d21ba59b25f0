"""How busy other programs keep the processors of this process, so that a measurement can tell that it was disturbed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter

STAT = Path("/proc/stat")
"""Per processor, the clock ticks that it spent in each state (Linux)."""
BUSY_STATES = (0, 1, 2, 5, 6, 7)
"""Of its columns: user, nice, system, interrupts, soft interrupts, and what the hypervisor gave to other machines."""
SHORTEST = 0.25
"""Seconds below which clock ticks, of a hundredth of a second, say nothing about the load."""
DISTURBED = 0.15
"""The share by which a measurement took longer, above which it counts as disturbed. Measured for cost tables: 0.01 to
0.06 on a quiet machine; 0.23 to 0.35 beside five busy processes on two cores, where passes seemed five times slower."""


@dataclass(frozen=True)
class LoadReading:
    """Seconds since fixed moments. wall: by the clock. own: of processor time of this process, and of those that it
    started and has waited for. busy: of busy time, summed over the processors that this process may run on; None where
    the system does not say."""

    wall: float
    own: float
    busy: float | None


def read() -> LoadReading:
    """The load up to now."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return LoadReading(perf_counter(), own, _busy_seconds())


def _busy_seconds() -> float | None:
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
        usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        columns = [line.split()[1:] for line in lines if line.split(" ", 1)[0] in usable]
        ticks = sum(int(each[state]) for each in columns for state in BUSY_STATES)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux, or a sandbox that hides it
        return None


def usable_processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def foreign_processors(begin: LoadReading, end: LoadReading) -> float:
    """How many processors other programs kept busy between two readings, on average; 0 where it is not known."""
    seconds = end.wall - begin.wall
    if begin.busy is None or end.busy is None or seconds < SHORTEST:
        return 0.0
    return max(0.0, (end.busy - begin.busy) - (end.own - begin.own)) / seconds


def slowdown(foreign: float, threads: int, processors: int) -> float:
    """By which share work of `threads` threads takes longer if others keep so many processors busy: what they take
    beyond the processors that the threads leave free is missing."""
    missing = max(0.0, foreign - max(0, processors - threads))
    return missing / (threads - missing) if missing < threads else inf


def slowdown_between(begin: LoadReading, end: LoadReading, threads: int) -> float:
    """`slowdown` by what other programs did between two readings, at most 100."""
    processors = usable_processors()
    return min(100.0, slowdown(foreign_processors(begin, end), min(threads, processors), processors))


class LoadWatch:
    """What other programs did while something was timed. foreign: the processors that they kept busy. disturbance: the
    share by which it took longer for that, by `slowdown_between`."""

    foreign = disturbance = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether the times are worth little."""
        return self.disturbance > DISTURBED

    def as_dict(self) -> dict[str, float]:
        """For the provenance of a result."""
        return {"foreign_processors": round(self.foreign, 3), "disturbance": round(self.disturbance, 3)}


@contextmanager
def watch(threads: int) -> Iterator[LoadWatch]:
    """Fill in a `LoadWatch` at the end of the block, which times work of so many threads."""
    watched, begin = LoadWatch(), read()
    try:
        yield watched
    finally:
        end = read()
        watched.foreign = foreign_processors(begin, end)
        watched.disturbance = slowdown_between(begin, end, threads)
