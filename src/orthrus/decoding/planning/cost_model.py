"""What a pass costs: a small table, measured once per device, model and precision, from which plans are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISTURBED = 0.15
"""The spread above which other work is taken to have disturbed a table: 0.01 to 0.06 on a quiet machine, 0.23 to 0.35
beside five busy processes on two cores, where passes seemed five times slower."""
Table = tuple[tuple[int, float], ...]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CostModel:
    """Seconds of a pass: a piecewise linear function of its rows, and what blocks and context add.

    rows, drafting: (rows, seconds) of an AR pass and of a diffusion pass, over a short context. block_overhead: seconds
    that an AR pass with any blocks takes longer; block: per block. key: per key that the first row of a sequence
    attends to; block_key: the same for the first row of a block; row_key: for each further row. Drafting passes include
    the work around them.
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
        """Whether other work slowed the passes down while they were measured: better measured again later."""
        return self.spread > DISTURBED

    def ar(self, batch: int, rows: int, context: float) -> float:
        """An AR pass over `rows` rows of each of `batch` sequences with `context` cached tokens on average."""
        return self.ragged(batch, batch * rows, 0, 0, context)

    def diffuse(self, batch: int, width: int, context: float) -> float:
        """A diffusion pass over a block of `width` rows for each of `batch` sequences."""
        return _at(self.drafting, batch * width) + batch * (self.key + self.row_key * (width - 1)) * context

    def ar_and_diffuse(self, batch: int, rows: int, blocks: int, width: int, context: float) -> float:
        """A pass over AR rows and `blocks` blocks per sequence; without blocks it is an AR pass."""
        return self.ragged(batch, batch * rows, batch * blocks, width, context)

    def ragged(self, batch: int, rows: int, blocks: int, width: int, context: float) -> float:
        """The same by what all sequences have together: `rows` AR rows and `blocks` blocks."""
        extra = self.block_overhead + blocks * self.block if blocks else 0.0
        keys = self.key * batch + self.block_key * blocks + self.row_key * (rows - batch + blocks * (width - 1))
        return _at(self.rows, rows + blocks * width) + extra + keys * context

    def grid(self, batch: int, rows: int, blocks: int, width: int, context: float) -> Array:
        """[blocks, rows]: `ar_and_diffuse` for 1 to `rows` rows and 0 to `blocks` - 1 blocks per sequence."""
        rows_R, blocks_J1 = batch * np.arange(1, rows + 1), batch * np.arange(blocks)[:, None]
        extra = np.where(blocks_J1 > 0, self.block_overhead + blocks_J1 * self.block, 0.0)
        passes = _along(self.rows, rows_R + blocks_J1 * width)
        more = self.row_key * (rows_R - batch + blocks_J1 * (width - 1))
        return passes + extra + (self.key * batch + self.block_key * blocks_J1 + more) * context

    def total(self, shapes: Mapping[tuple[str, int, int, int], int], context: float) -> float:
        """All cycles of one sequence, counted by shape as in `Statistics`."""
        return sum(count * self.cycle(shape, context) for shape, count in shapes.items())

    def cycle(self, shape: tuple[str, int, int, int], context: float) -> float:
        """One cycle of a shape, alone."""
        kind, drafts, blocks, width = shape
        drafting = self.diffuse(1, width, context) if kind == "two-pass" else 0.0
        return drafting + self.ar_and_diffuse(1, 1 + drafts, blocks, width, context)

    def as_dict(self) -> dict[str, Any]:
        """For a file; `CostModel.of` reads it."""
        return asdict(self)

    @staticmethod
    def of(content: Any) -> CostModel:
        """The reverse of `as_dict`. Raises ValueError where it is none."""
        if not isinstance(content, dict) or content.keys() != {f.name for f in fields(CostModel)}:
            raise ValueError("not a cost table")
        tables = {name: tuple((int(n), float(s)) for n, s in content[name]) for name in ("rows", "drafting")}
        numbers = {name: float(value) for name, value in content.items() if name not in tables}
        for table in tables.values():
            counts, seconds = [0, *(n for n, _ in table)], [s for _, s in table]
            if len(table) < 1 or counts != sorted(set(counts)) or not all(0 < s < inf for s in seconds):
                raise ValueError("the rows or seconds of a cost table make no sense")
        if not all(0 <= value < inf for value in numbers.values()):
            raise ValueError("the numbers of a cost table make no sense")
        return CostModel(tables["rows"], tables["drafting"], **numbers)


def table(counts: Sequence[int], seconds: Sequence[float]) -> Table:
    """No pass costs more than one of more rows does: if it was measured to, others disturbed it."""
    return tuple((count, min(seconds[n:])) for n, count in enumerate(counts))


def _at(table: Table, rows: int) -> float:
    (low, fast), *more = table
    if rows <= low:
        return fast
    for high, slow in more:
        if rows <= high or high == table[-1][0]:
            return fast + (slow - fast) * (rows - low) / (high - low)
        low, fast = high, slow
    return fast * rows / low


def _along(table: Table, rows: NDArray[np.int64]) -> Array:
    """`_at`, for many at once."""
    counts, seconds = np.array(table).T
    rate = (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2]) if len(table) > 1 else seconds[0] / counts[0]
    return np.interp(rows, counts, seconds) + rate * np.maximum(rows - counts[-1], 0)
