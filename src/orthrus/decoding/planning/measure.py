"""Measure the cost model: time passes of every kind for a few seconds and fit the model to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor

from orthrus import machine_load
from orthrus.decoding.argmax import best
from orthrus.decoding.planning.cost_model import CostModel, table
from orthrus.decoding.propose import computes_eagerly
from orthrus.runner.draft_tree import BlockRows
from orthrus.runner.runner import Runner
from orthrus.torch_threads import kernel_threads

ROWS = (1, 2, 4, 8, 16, 17, 32, 33, 64, 128)
"""Rows of the AR passes that are timed. Matrix units compute tiles of 16 or 32 rows, so one more row may take much."""
SHORT, LONG = 128, 1024
"""Contexts at which passes are timed, in tokens; the difference gives the cost of attending to keys."""
ROUNDS, REPEATS = 12, 3
"""Rounds of measurement, and passes of each kind per round. The first pass of a kind is not counted, since the kind
before it left other data in the processor's caches. Kinds with more rows run first, so that a one-row pass follows
similar passes and finds its weights cached as in plain decoding."""
MANY_ROWS, SELDOM = 33, 3
"""Kinds of passes of more rows run in every third round: they take half of the time, and only batches need them."""
MIN_ROUNDS, MAX_SECONDS = 1, 6.0
"""After this many rounds, measuring stops once it has taken this many seconds, which limits it on a slow machine."""
DRAFT_ROWS = (2, 4, 8, 16, 32, 64)
"""Rows of the diffusion passes that are timed."""
TREE_NODES = 16
"""Nodes of the trees that are chosen in the passes that draft."""
DRAFT_OVERHEAD = 1.2e-3
"""Seconds of host work for the drafts of a diffusion pass or of blocks, besides the choice of their trees, which is
timed: planning, verifying trees, committing paths, and recording the verdicts."""


class MeasuringInterrupted(Exception):  # noqa: N818
    """Measuring was given up, because the model is wanted for something else."""


@torch.inference_mode()
def measure(runner: Runner, interrupted: Callable[[], bool] = lambda: False) -> CostModel:
    """Time passes of every kind, interleaved, for a few seconds. Needs a diffusion view.

    interrupted: asked before every pass. Raises MeasuringInterrupted once it is true.
    """
    passes = _Passes(runner)
    rounds: list[dict[Any, list[float]]] = []
    load_before, began, running = machine_load.read(), perf_counter(), 0.0
    for turn in range(ROUNDS + 1):
        if turn > MIN_ROUNDS and perf_counter() - began > MAX_SECONDS:
            break
        times: dict[Any, list[float]] = {}
        for name, (context, run) in passes.kinds.items():
            if name in passes.seldom and turn and turn % SELDOM != 1:
                continue
            for repeat in range(REPEATS if turn else 1):  # the first round warms up: nothing of it is counted
                if interrupted():
                    raise MeasuringInterrupted
                passes.table.commit(context)
                start, start_running = perf_counter(), thread_time()
                with runner.between_passes():
                    run()
                if runner.device.type == "cuda":
                    torch.cuda.synchronize(runner.device)
                if turn and repeat:
                    times.setdefault(name, []).append(perf_counter() - start)
                    running += thread_time() - start_running
        rounds.append(times)
    typical = _typical([{name: min(each) for name, each in times.items()} for times in rounds[1:]])
    counted = [(name, seconds) for times in rounds for name, each in times.items() for seconds in each]
    spread = median(seconds / typical[name] - 1 for name, seconds in counted)
    if runner.device.type == "cpu":  # beside steady work all passes are slow alike: this thread waits, or it spins
        waited = sum(seconds for _, seconds in counted) / max(running, 1e-9) - 1
        spread = max(spread, waited, machine_load.slowdown_between(load_before, machine_load.read(), kernel_threads()))
    return _fitted(passes, typical, spread)


def _typical(rounds: list[dict[Any, float]]) -> dict[Any, float]:
    """The seconds of each kind of pass, at the pace of the fastest fifth of the rounds.

    A machine that others share changes its pace within seconds, for all kinds alike. Each round is therefore divided by
    its own pace, so that no kind looks faster than another because it ran in faster rounds.
    """
    names = {name for times in rounds for name in times}
    usual = {name: median(times[name] for times in rounds if name in times) for name in names}
    common = [name for name in names if all(name in times for times in rounds)]
    paces = [median(times[name] / usual[name] for name in common) for times in rounds]
    own = {
        name: median(times[name] / pace for times, pace in zip(rounds, paces, strict=True) if name in times)
        for name in names
    }
    return {name: seconds * sorted(paces)[len(paces) // 5] for name, seconds in own.items()}


class _Passes:
    """The kinds of passes that are timed. kinds: name -> (cached tokens, function that runs one pass)."""

    def __init__(self, runner: Runner) -> None:
        assert runner.diffusion is not None
        self.width = min(runner.diffusion.block_size, 8)
        self._runner, self._tables = runner, runner.new_tables(1, LONG)
        (self.table,) = self._tables
        self.table.reserve(LONG + max(ROWS))
        self.long = max(64, min(LONG, runner.config.max_positions - max(ROWS) - 4 * self.width))
        self.short = min(SHORT, self.long // 2)
        self.counts = [count for count in ROWS if count <= runner.max_rows]
        self.several_rows = min(8, self.counts[-1])
        kinds: dict[Any, tuple[int, Callable[[], None]]] = {
            f"blocks {n}": (self.short, partial(self._joint, n)) for n in (3, 2, 1)
        }
        kinds |= {f"draft {count}": (self.short, partial(self._draft, count)) for count in reversed(DRAFT_ROWS)}
        kinds |= {f"long {count}": (self.long, partial(self._plain, count)) for count in (self.several_rows, 1)}
        self.kinds = kinds | {count: (self.short, partial(self._plain, count)) for count in reversed(self.counts)}
        self.seldom = {f"draft {count}" for count in DRAFT_ROWS if count > MANY_ROWS} | {
            count for count in self.counts if count > MANY_ROWS
        }

    def _rows(self, count: int) -> list[list[int]]:
        return [[token % self._runner.config.vocab_size for token in range(count)]]

    def _plain(self, count: int) -> None:
        best(self._runner.ar(self._rows(count), self._tables)[0])

    def _draft(self, count: int) -> None:
        (logits_RV,), (hidden_RD,) = self._runner.diffuse_rows([0], count, self._tables, rows=count)
        for logits, hidden in zip(logits_RV.split(self.width), hidden_RD.split(self.width), strict=True):
            self._choose(logits, hidden)  # as for a batch of blocks

    def _choose(self, logits_RV: Tensor, hidden_RD: Tensor) -> None:
        BlockRows.of(self._runner, hidden_RD).tree(logits_RV, [1.0] * len(logits_RV), TREE_NODES)

    def _joint(self, blocks: int) -> None:
        runner, eager = self._runner, computes_eagerly(self._runner, blocks * self.width)
        (logits_RV,), (drafted_JWX,), (hidden_JWD,) = runner.ar_and_diffuse(
            self._rows(4), [range(blocks)], self.width, self._tables, eager_logits=eager
        )
        best(logits_RV)
        self._choose(drafted_JWX[0] if eager else runner.draft_logits(drafted_JWX[0]), hidden_JWD[0])


def _fitted(passes: _Passes, typical: dict[Any, float], spread: float) -> CostModel:
    """The cost model that reproduces these seconds."""
    short, width, counts, several_rows = passes.short, passes.width, passes.counts, passes.several_rows
    key, several_keys = (
        max(0.0, typical[f"long {count}"] - typical[count]) / (passes.long - short) for count in (1, several_rows)
    )
    row_key = max(0.0, several_keys - key) / max(1, several_rows - 1)

    def without_keys(name: Any, count: int) -> float:
        return max(typical[name] - (key + row_key * (count - 1)) * short, typical[name] / 10)

    plain = table(counts, [without_keys(count, count) for count in counts])
    drafting = table(DRAFT_ROWS, [without_keys(f"draft {count}", count) + DRAFT_OVERHEAD for count in DRAFT_ROWS])
    bare = CostModel(plain, drafting, 0.0, 0.0, key, key, row_key)
    extra = {n: typical[f"blocks {n}"] - bare.ragged(1, 4, n, width, short) for n in (1, 2, 3)}
    block = max(0.0, (extra[3] - extra[1]) / 2)
    return CostModel(plain, drafting, DRAFT_OVERHEAD + max(0.0, extra[1] - block), block, key, key, row_key, spread)
