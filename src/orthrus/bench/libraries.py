"""Passes of one model on two libraries of C kernels, interleaved."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from orthrus.backends.native import build
from orthrus.backends.native.kernels import NativeKernels
from orthrus.runner import native
from orthrus.runner.runner import Runner

CONTEXT = 200
WARM_UP = 4


def compare(runner: Runner, before: Path, after: Path, rows: tuple[int, ...] = (1, 16), n: int = 60) -> list[Any]:
    """Milliseconds of AR passes of `rows` on the library `before` and on `after`, n pairs, at `CONTEXT` cached tokens.

    Both run the same packed weights. Empty where the runner does not run whole passes in C, or where the libraries
    read weights in different orders. `same bits`: whether their logits were equal in every pair.
    """
    libraries = [NativeKernels(build.load(path)) for path in (before, after)]
    orders = {kernels.library.k_interleave(runner.config.hidden_size) for kernels in libraries}
    if not native.supported(runner.decoder, runner.kernels, runner.attention) or len(orders) > 1:
        return []
    runners = [Runner(runner.decoder, kernels, runner.attention, runner.draft_weights) for kernels in libraries]
    tables = runner.new_tables(1, CONTEXT + max(rows))
    ids = np.random.default_rng(0).integers(0, runner.config.vocab_size, CONTEXT + max(rows)).tolist()
    runner.ar([ids[:CONTEXT]], tables, logit_rows=[0])
    tables[0].commit(CONTEXT)
    return [_pairs(runners, tables, ids[CONTEXT : CONTEXT + count], n) for count in rows]


def _pairs(runners: list[Runner], tables: Any, tokens: list[int], n: int) -> dict[str, Any]:
    times, equal = np.empty((n + WARM_UP, len(runners))), True
    for turn, pair in enumerate(times):
        logits = {}
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            start = perf_counter()
            logits[index] = runners[index].ar([tokens], tables)[0]
            pair[index] = 1e3 * (perf_counter() - start)
        equal = equal and bool((logits[0] == logits[1]).all())
    times = times[WARM_UP:]
    ratios = times[:, 1] / times[:, 0]
    before, after = np.median(times, axis=0).tolist()
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return {
        "rows": len(tokens), "context": CONTEXT, "n": n, "before_ms": before, "after_ms": after, "ratio": middle,
        "ratio_quartiles": (low, high), "same bits": equal,
    }  # fmt: skip
