"""What a pass costs: a small table, measured once per device, model and precision, from which plans are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import inf
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orthrus.decoding.propose import DECIDED, sureness
from orthrus.decoding.sampling import best
from orthrus.model.decoder import Decoder

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SHORT, LONG = 128, 1024
"""Contexts at which passes are timed; the difference is what reading keys costs."""
ROUNDS, REPEATS = 6, 3
"""Turns, and passes of a kind in each, of which the first does not count: it finds the caches as others left them. That
of more rows comes first, so that the cheapest finds its weights where running it all the time would."""
FEWEST_ROUNDS, SECONDS = 3, 6.0
"""Rounds after which measuring ends once it has taken this long: on a busy machine, or a slow one, it would not end."""
DISTURBED = 0.15
"""The spread above which other work is taken to have disturbed a table: 0.01 to 0.06 on a quiet machine, 0.23 to 0.35
beside five busy processes on two cores, where passes seemed five times slower."""
DRAFTED = (2, 4, 8, 16, 32, 64)
AROUND = 6e-4
"""Seconds of the work that comes with a diffusion pass, or with blocks: choosing what to verify of their drafts,
entering the verdicts. What planning takes in every cycle is the planner's own figure."""
Table = tuple[tuple[int, float], ...]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Seconds of a pass: a piecewise linear function of its rows, and what blocks and context add.

    rows, drafting: (rows, seconds) of an AR pass and of a diffusion pass, over a short context; beside: what blocks in
    an AR pass add at all, and block: each of them; key: each key that a row of one sequence attends to, block_key: that
    a row of one block does; row_key: each key of each row more. What drafts is counted with the work around it.
    """

    rows: Table
    drafting: Table
    beside: float
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
        extra = self.beside + blocks * self.block if blocks else 0.0
        keys = self.key * batch + self.block_key * blocks + self.row_key * (rows - batch + blocks * (width - 1))
        return _at(self.rows, rows + blocks * width) + extra + keys * context

    def grid(self, batch: int, rows: int, blocks: int, width: int, context: float) -> Array:
        """[blocks, rows]: `ar_and_diffuse` for 1 to `rows` rows and 0 to `blocks` - 1 blocks per sequence."""
        rows_R, blocks_J1 = batch * np.arange(1, rows + 1), batch * np.arange(blocks)[:, None]
        extra = np.where(blocks_J1 > 0, self.beside + blocks_J1 * self.block, 0.0)
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
        """For a file; `Costs.of` reads it."""
        return asdict(self)

    @staticmethod
    def of(content: Any) -> Costs:
        """The reverse of `as_dict`. Raises ValueError where it is none."""
        if not isinstance(content, dict) or content.keys() != {f.name for f in fields(Costs)}:
            raise ValueError("not a cost table")
        tables = {name: tuple((int(n), float(s)) for n, s in content[name]) for name in ("rows", "drafting")}
        numbers = {name: float(value) for name, value in content.items() if name not in tables}
        for table in tables.values():
            counts, seconds = [0, *(n for n, _ in table)], [s for _, s in table]
            if len(table) < 1 or counts != sorted(set(counts)) or not all(0 < s < inf for s in seconds):
                raise ValueError("the rows or seconds of a cost table make no sense")
        if not all(0 <= value < inf for value in numbers.values()):
            raise ValueError("the numbers of a cost table make no sense")
        return Costs(tables["rows"], tables["drafting"], **numbers)


def _table(counts: Sequence[int], seconds: Sequence[float]) -> Table:
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


@torch.inference_mode()
def measure(decoder: Decoder) -> Costs:
    """Time passes of every kind in turn, for a few seconds. Needs a diffusion view."""
    assert decoder.diffusion is not None
    width = min(decoder.diffusion.block_size, 8)
    cache = decoder.new_cache(1)
    cache.reserve(LONG + max(ROWS) + 4 * width)
    window = cache.window(0, 1)
    longest = max(64, min(LONG, decoder.config.max_positions - max(ROWS) - 4 * width))
    short = min(SHORT, longest // 2)

    def rows(count: int) -> Tensor:
        return torch.arange(count, device=decoder.device)[None] % decoder.config.vocab_size

    def plain(count: int) -> None:
        best(decoder.ar(rows(count), window)[0])

    def draft(count: int) -> None:
        best(logits_RV := decoder.diffuse([0], count, window, count)[0])
        sureness(decoder, logits_RV)

    def both(blocks: int) -> None:
        decided = blocks * width <= DECIDED
        (logits_RV,), (found,) = decoder.ar_and_diffuse(rows(4).tolist(), range(blocks), width, window, decided=decided)
        best(logits_RV)
        sureness(decoder, found[0] if decided else decoder.logits(found[:1], drafting=True)[0])

    counts = [count for count in ROWS if count <= decoder.most_rows]
    passes: dict[Any, tuple[int, Callable[[], None]]] = {f"blocks {n}": (short, partial(both, n)) for n in (3, 2, 1)}
    passes |= {f"draft {count}": (short, partial(draft, count)) for count in reversed(DRAFTED)}
    few = min(8, counts[-1])
    passes |= {f"long {count}": (longest, partial(plain, count)) for count in (few, 1)}
    passes |= {count: (short, partial(plain, count)) for count in reversed(counts)}
    times: dict[Any, list[float]] = {name: [] for name in passes}
    began = perf_counter()
    for turn in range(ROUNDS + 1):
        if turn > FEWEST_ROUNDS and perf_counter() - began > SECONDS:
            break
        for name, (context, run) in passes.items():
            for repeat in range(REPEATS):
                cache.commit(0, context)
                start = perf_counter()
                run()
                if decoder.device.type == "cuda":
                    torch.cuda.synchronize(decoder.device)
                if turn and repeat:
                    times[name].append(perf_counter() - start)
    found = {name: sorted(each)[len(each) // 5] for name, each in times.items()}  # what others disturb counts less
    spread = median(median(each) / found[name] - 1 for name, each in times.items())
    key, keys = (max(0.0, found[f"long {count}"] - found[count]) / (longest - short) for count in (1, few))
    more = max(0.0, keys - key) / max(1, few - 1)

    def without_keys(name: Any, count: int) -> float:
        return found[name] - (key + more * (count - 1)) * short

    plainly = _table(counts, [without_keys(count, count) for count in counts])
    drafting = _table(DRAFTED, [without_keys(f"draft {count}", count) + AROUND for count in DRAFTED])
    bare = Costs(plainly, drafting, 0.0, 0.0, key, key, more)
    extra = {n: found[f"blocks {n}"] - bare.ar_and_diffuse(1, 4, n, width, short) for n in (1, 2, 3)}
    block = max(0.0, (extra[3] - extra[1]) / 2)
    return Costs(plainly, drafting, AROUND + max(0.0, extra[1] - block), block, key, key, more, spread)
