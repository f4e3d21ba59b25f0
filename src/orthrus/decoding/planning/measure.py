"""Times passes of every kind, for a few seconds, and fits the cost model to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from orthrus.decoding.planning.cost_model import CostModel, table
from orthrus.decoding.propose import EAGER_LOGITS
from orthrus.decoding.sampling import best
from orthrus.runner.runner import Runner

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SHORT, LONG = 128, 1024
"""Contexts at which passes are timed; the difference is what reading keys costs."""
ROUNDS, REPEATS = 6, 3
"""Turns, and passes of a kind in each, of which the first does not count: it finds the caches as others left them. That
of more rows comes first, so that the cheapest finds its weights where running it all the time would."""
FEWEST_ROUNDS, SECONDS = 3, 6.0
"""Rounds after which measuring ends once it has taken this long: on a busy machine, or a slow one, it would not end."""
DRAFTED = (2, 4, 8, 16, 32, 64)
AROUND = 6e-4
"""Seconds of the work that comes with a diffusion pass, or with blocks: choosing what to verify of their drafts,
entering the verdicts. What planning takes in every cycle is the planner's own figure."""


@torch.inference_mode()
def measure(runner: Runner) -> CostModel:
    """Time passes of every kind, interleaved, for a few seconds. Needs a diffusion view."""
    passes = _Passes(runner)
    times: dict[Any, list[float]] = {name: [] for name in passes.kinds}
    began = perf_counter()
    for turn in range(ROUNDS + 1):
        if turn > FEWEST_ROUNDS and perf_counter() - began > SECONDS:
            break
        for name, (context, run) in passes.kinds.items():
            for repeat in range(REPEATS):
                passes.cache.commit(0, context)
                start = perf_counter()
                run()
                if runner.device.type == "cuda":
                    torch.cuda.synchronize(runner.device)
                if turn and repeat:
                    times[name].append(perf_counter() - start)
    typical = {name: sorted(each)[len(each) // 5] for name, each in times.items()}  # what others disturb counts less
    spread = median(median(each) / typical[name] - 1 for name, each in times.items())
    return _fitted(passes, typical, spread)


class _Passes:
    """The kinds of passes that are timed: name -> cached tokens, and what runs one."""

    def __init__(self, runner: Runner) -> None:
        assert runner.diffusion is not None
        self.width = min(runner.diffusion.block_size, 8)
        self.cache = runner.new_cache(1)
        self.cache.reserve(LONG + max(ROWS) + 4 * self.width)
        self._runner, self._window = runner, self.cache.window(0, 1)
        self.long = max(64, min(LONG, runner.config.max_positions - max(ROWS) - 4 * self.width))
        self.short = min(SHORT, self.long // 2)
        self.counts = [count for count in ROWS if count <= runner.max_rows]
        self.few = min(8, self.counts[-1])
        kinds: dict[Any, tuple[int, Callable[[], None]]] = {
            f"blocks {n}": (self.short, partial(self._joint, n)) for n in (3, 2, 1)
        }
        kinds |= {f"draft {count}": (self.short, partial(self._draft, count)) for count in reversed(DRAFTED)}
        kinds |= {f"long {count}": (self.long, partial(self._plain, count)) for count in (self.few, 1)}
        self.kinds = kinds | {count: (self.short, partial(self._plain, count)) for count in reversed(self.counts)}

    def _rows(self, count: int) -> list[list[int]]:
        return [[token % self._runner.config.vocab_size for token in range(count)]]

    def _plain(self, count: int) -> None:
        best(self._runner.ar(self._rows(count), self._window)[0])

    def _draft(self, count: int) -> None:
        best(logits_RV := self._runner.diffuse([0], count, self._window, rows=count)[0])
        self._runner.top1_probability(logits_RV).tolist()

    def _joint(self, blocks: int) -> None:
        runner, eager = self._runner, blocks * self.width <= EAGER_LOGITS
        (logits_RV,), (drafted_JWX,) = runner.ar_and_diffuse(
            self._rows(4), [range(blocks)], self.width, self._window, eager_logits=eager
        )
        best(logits_RV)
        runner.top1_probability(drafted_JWX[0] if eager else runner.draft_logits(drafted_JWX[0])).tolist()


def _fitted(passes: _Passes, typical: dict[Any, float], spread: float) -> CostModel:
    """The cost model that gives these seconds."""
    short, width, counts, few = passes.short, passes.width, passes.counts, passes.few
    key, keys = (max(0.0, typical[f"long {count}"] - typical[count]) / (passes.long - short) for count in (1, few))
    more = max(0.0, keys - key) / max(1, few - 1)

    def without_keys(name: Any, count: int) -> float:
        return max(typical[name] - (key + more * (count - 1)) * short, typical[name] / 10)

    plain = table(counts, [without_keys(count, count) for count in counts])
    drafting = table(DRAFTED, [without_keys(f"draft {count}", count) + AROUND for count in DRAFTED])
    bare = CostModel(plain, drafting, 0.0, 0.0, key, key, more)
    extra = {n: typical[f"blocks {n}"] - bare.ar_and_diffuse(1, 4, n, width, short) for n in (1, 2, 3)}
    block = max(0.0, (extra[3] - extra[1]) / 2)
    return CostModel(plain, drafting, AROUND + max(0.0, extra[1] - block), block, key, key, more, spread)
