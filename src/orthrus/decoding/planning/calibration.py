"""The cost table of a model on this machine: measured on first use, cached on disk, and measured again if disturbed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import fields
from math import inf
from threading import Lock

import torch

from orthrus import file_cache
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.measure import DRAFT_OVERHEAD, ROWS, TREE_NODES, MeasuringInterrupted, measure
from orthrus.runner.runner import Runner, bytes_of
from orthrus.torch_threads import kernel_threads

ASSUMED = {
    "rows": ((1, 1.0), (2, 1.15), (4, 1.6), (8, 2.5), (16, 3.9), (32, 6.8), (64, 12.6), (128, 24.4)),
    "drafting": ((2, 0.84), (4, 0.98), (8, 1.54), (16, 2.5), (32, 4.6), (64, 8.8)),
}
"""Passes relative to one of a single row, on a processor with AVX-512 and without AMX (an EPYC)."""
ASSUMED_BANDWIDTH = 2e10
"""Bytes per second at which a pass of one row reads the weights."""
MEASURE_AGAIN_AFTER = 300.0
"""Age in seconds from which a table that other programs disturbed is measured again."""
log = logging.getLogger(__name__)


class Calibration:
    """The cost table of one model. Thread-safe: one thread measures, the others wait for it."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._lock = runner, Lock()
        self._costs: CostModel | None = None

    @property
    def key(self) -> str:
        """The cache key of the table: a hash of shapes, precision, device, threads and versions."""
        runner = self._runner
        gpu = torch.cuda.get_device_name(runner.device) if runner.device.type == "cuda" else None
        parts = (
            runner.config, runner.diffusion, str(runner.decoder.dtype), gpu or file_cache.processor_name(),
            kernel_threads(), torch.__version__, runner.kernels.build,
            runner.linear_kernels,
            ROWS, TREE_NODES, DRAFT_OVERHEAD,
            runner.draft_weights.head is None, runner.decoder.draft_head and runner.decoder.draft_head.units,
            [(f.name, f.type) for f in fields(CostModel)],
        )  # fmt: skip
        return f"costs-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    @property
    def known(self) -> bool:
        """Whether a table exists in memory or on disk."""
        return self._costs is not None or file_cache.age_of(self.key) < inf

    def assume(self) -> bool:
        """Plan by `ASSUMED`, or by a table that is due to be measured again, so that a first answer need not wait.
        Returns whether to measure after it; a GPU measures at once, because the assumption is about a CPU."""
        with self._lock:
            if self._runner.device.type != "cpu" or self._costs is not None:
                return False
            if self.known:
                self._costs = self._cached(lambda: measure(self._runner), refresh=False)
                return self._is_due(self._costs)
            linears = self._runner.decoder.linears().items()
            one = sum(bytes_of(linear) for name, linear in linears if ".diffusion." not in name) / ASSUMED_BANDWIDTH
            rows, drafting = (tuple((count, one * part) for count, part in table) for table in ASSUMED.values())
            self._costs = CostModel(rows, drafting, one / 10, 0.0, one / 5000, one / 5000, one / 15000)
            return True

    def costs(self, *, refresh: bool = False) -> CostModel:
        """The table. It is measured, which takes seconds, if there is none yet or on `refresh`.

        A table that other programs disturbed is measured again by a later run, and the one with the smaller spread is
        kept. Raises ValueError if there is no diffusion view to plan for.
        """
        if self._runner.diffusion is None:
            raise ValueError("without a diffusion view there is nothing to plan: see --adapter")
        with self._lock:
            if self._costs is None or refresh:
                self._costs = self._measured(refresh=refresh)
            return self._costs

    def measure_again(self, interrupted: Callable[[], bool]) -> CostModel | None:
        """Measure again, and keep the table with the smaller spread, on disk too. `interrupted` is asked before every
        pass: once it is true, the result is None, and the table stays as it was."""
        with self._lock:
            try:
                measured = measure(self._runner, interrupted)
            except MeasuringInterrupted:
                return None
            best = min(self._costs or measured, measured, key=lambda costs: costs.spread)
            self._costs = self._cached(lambda: best, refresh=True)
            return self._costs

    def _measured(self, *, refresh: bool) -> CostModel:
        fresh = refresh or not self.known
        costs = self._cached(lambda: measure(self._runner), refresh=refresh)
        if not fresh and self._is_due(costs):
            log.info("other work disturbed the cost table when it was measured; it is measured again")
            earlier = costs
            costs = self._cached(lambda: min(earlier, measure(self._runner), key=lambda c: c.spread), refresh=True)
        if costs.disturbed:
            log.info("other work disturbed the measurement of the cost table; a later run measures it again")
        return costs

    def _is_due(self, costs: CostModel) -> bool:
        """Whether a table from the disk was disturbed, long enough ago that another measurement may go better."""
        return costs.disturbed and file_cache.age_of(self.key) > MEASURE_AGAIN_AFTER

    def _cached(self, compute: Callable[[], CostModel], *, refresh: bool) -> CostModel:
        costs: CostModel = file_cache.cached_json(
            self.key, lambda: compute().as_dict(), read=CostModel.of, refresh=refresh
        )
        return costs
