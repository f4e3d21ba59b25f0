"""The cost model of the planner: seconds of a pass, from a table measured once per device, model and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Any

from orthrus.machine_load import DISTURBED

LOOKED_UP = 512
"""The rows below which the seconds of a pass are kept in a list."""
Table = tuple[tuple[int, float], ...]
"""(rows, seconds) in ascending order of rows."""


@dataclass(frozen=True)
class CostModel:
    """Seconds of a pass: piecewise linear in its rows, plus terms for blocks and context.

    rows, drafting: (rows, seconds) of an AR pass and of a diffusion pass without context; those of a diffusion pass
    include the host work for its drafts. block_overhead: extra seconds of an AR pass that has any blocks. block: extra
    seconds per block. key: seconds per key that the first row of a sequence attends to. block_key: the same for the
    first row of a block. row_key: the same for each further row of a sequence or block. spread: how far the
    measured seconds of a pass lay above those of the table, relative to them, in the middle of all passes, or, if that
    is more, how far the seconds of the passes lay above those in which their thread ran, or the share by which other
    programs slowed them down (`machine_load.slowdown_between`).
    """

    rows: Table
    drafting: Table
    block_overhead: float
    block: float
    key: float
    block_key: float
    row_key: float = 0.0
    spread: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether other programs seem to have slowed the measurement down, so that it should be repeated later."""
        return self.spread > DISTURBED

    def ar_up_to(self, batch: int, more: int, others: int, context: float) -> list[float]:
        """[more + 1]: AR passes over one row of each of `batch` sequences and 0 to `more` more rows, beside `others`
        rows of blocks. What the keys of the others cost is left out."""
        fewest, keys, per_row = batch + others, self.key * batch * context, self.row_key * context
        known = self._by_rows[fewest : fewest + more + 1]
        further = [_interpolate(self.rows, fewest + n) for n in range(len(known), more + 1)]
        return [seconds + keys + n * per_row for n, seconds in enumerate(known + further)]

    def _of_rows(self, rows: int) -> float:
        """An AR pass over so many rows, without context."""
        seconds = self._by_rows
        return seconds[rows] if rows < len(seconds) else _interpolate(self.rows, rows)

    @cached_property
    def _by_rows(self) -> list[float]:
        """The seconds of passes of 0, 1, 2 .. rows, which are looked up many times per pass."""
        return [_interpolate(self.rows, rows) for rows in range(LOOKED_UP)]

    def row(self, rows: int, context: float) -> float:
        """One more row of a sequence, in a pass of `rows` rows. By the convex hull of the table, so it never falls with
        the number of rows."""
        slope = next((seconds for stop, seconds in self._slopes if rows < stop), self._slopes[-1][1])
        return slope + self.row_key * context

    @cached_property
    def _slopes(self) -> list[tuple[int, float]]:
        """The convex hull of `rows`: (rows up to which a row takes so long, seconds)."""
        hull: list[tuple[int, float]] = []
        for point in self.rows:
            while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(point)
        return [(right[0], _slope(left, right)) for left, right in pairwise(hull)] or [(1, hull[0][1] / hull[0][0])]

    def ar(self, batch: int, rows: int, context: float) -> float:
        """An AR pass over `rows` rows of each of `batch` sequences with `context` cached tokens on average."""
        return self.ragged(batch, batch * rows, 0, 0, context)

    def diffuse(self, batch: int, width: int, context: float) -> float:
        """A diffusion pass over a block of `width` rows for each of `batch` sequences."""
        return _interpolate(self.drafting, batch * width) + batch * (self.key + self.row_key * (width - 1)) * context

    def ragged(self, batch: int, rows: int, blocks: int, width: int, context: float) -> float:
        """A pass over `rows` AR rows and `blocks` blocks of a batch in total; without blocks it is an AR pass."""
        block_seconds = self.block_overhead + blocks * self.block if blocks else 0.0
        keys = self.key * batch + self.block_key * blocks + self.row_key * (rows - batch + blocks * (width - 1))
        return self._of_rows(rows + blocks * width) + block_seconds + keys * context

    def with_draft_overhead(self, seconds: float) -> CostModel:
        """The same with more host work for the drafts of a diffusion pass or of blocks."""
        drafting = tuple((rows, own + seconds) for rows, own in self.drafting)
        return replace(self, drafting=drafting, block_overhead=self.block_overhead + seconds)

    def total(self, shapes: Mapping[tuple[str, int, int, int], int], context: float) -> float:
        """The seconds of all cycles of one sequence; `shapes` counts them by shape, as in `Statistics`."""
        return sum(count * self.cycle(shape, context) for shape, count in shapes.items())

    def cycle(self, shape: tuple[str, int, int, int], context: float) -> float:
        """The seconds of one cycle of this shape at batch size 1."""
        kind, drafts, blocks, width = shape
        drafting = self.diffuse(1, width, context) if kind == "two-pass" else 0.0
        return drafting + self.ragged(1, 1 + drafts, blocks, width, context)

    def as_dict(self) -> dict[str, Any]:
        """The content of a JSON file, which `CostModel.of` reads."""
        return asdict(self)

    @staticmethod
    def of(content: Any) -> CostModel:
        """The reverse of `as_dict`. Raises ValueError if the content is not a cost table."""
        if not isinstance(content, dict) or content.keys() != {f.name for f in fields(CostModel)}:
            raise ValueError("not a cost table")
        tables = {name: tuple((int(n), float(s)) for n, s in content[name]) for name in ("rows", "drafting")}
        terms = {name: float(value) for name, value in content.items() if name not in tables}
        for table in tables.values():
            counts, seconds = [0, *(n for n, _ in table)], [s for _, s in table]
            if len(table) < 1 or counts != sorted(set(counts)) or not all(0 < s < inf for s in seconds):
                raise ValueError(
                    "a cost table needs ascending numbers of rows, and seconds that are positive and finite"
                )
        if not all(0 <= value < inf for value in terms.values()):
            raise ValueError("the terms of a cost table must be finite and not negative")
        return CostModel(tables["rows"], tables["drafting"], **terms)


def table(counts: Sequence[int], seconds: Sequence[float]) -> Table:
    """Measured seconds as a monotonic table: a pass that took longer than one of more rows was disturbed."""
    return tuple((count, min(seconds[n:])) for n, count in enumerate(counts))


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _interpolate(table: Table, rows: int) -> float:
    (low, fast), *rest = table
    if rows <= low:
        return fast
    for high, slow in rest:
        if rows <= high or high == table[-1][0]:
            return fast + (slow - fast) * (rows - low) / (high - low)
        low, fast = high, slow
    return fast * rows / low
