"""The cost table of a model on this machine: measured on first use, cached on disk, and measured again if disturbed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import fields
from threading import Lock
from typing import NoReturn

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
BENCHMARK_MAX_AGE = 3600.0
"""Age in seconds up to which a benchmark plans by an undisturbed table: the pace of a shared machine changes."""
BENCHMARK_ATTEMPTS = 2
"""Measurements that a benchmark makes at most while they are disturbed."""
log = logging.getLogger(__name__)


class _NoTableError(Exception):
    """There is no valid table on the disk."""


class Calibration:
    """The cost table of one model. Thread-safe: one thread measures, the others wait for it."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._lock = runner, Lock()
        self._costs: CostModel | None = None
        self._assumed = False
        self.newest: CostModel | None = None
        """The newest measurement of this process. Where it was disturbed, an earlier table may have been kept."""

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

    def assume(self) -> bool:
        """Plan by `ASSUMED`, or by a table that is due to be measured again, so that a first answer need not wait.
        Returns whether to measure after it; a GPU measures at once, because the assumption is about a CPU."""
        with self._lock:
            if self._runner.device.type != "cpu" or self._costs is not None:
                return False
            self._costs = self._stored()
            if self._costs is not None:
                return self._is_due(self._costs)
            linears = self._runner.decoder.linears().items()
            one = sum(bytes_of(linear) for name, linear in linears if ".diffusion." not in name) / ASSUMED_BANDWIDTH
            rows, drafting = (tuple((count, one * part) for count, part in table) for table in ASSUMED.values())
            self._costs = CostModel(rows, drafting, one / 10, 0.0, one / 5000, one / 5000, one / 15000)
            self._assumed = True
            return True

    def costs(self, *, refresh: bool = False) -> CostModel:
        """The table. It is measured, which takes seconds, if there is none yet or on `refresh`.

        A table that other programs disturbed is measured again by a later run. The newer one is kept if it is
        undisturbed, else the one with the smaller spread. Raises ValueError if there is no diffusion view to plan for.
        """
        self._need_view()
        with self._lock:
            if refresh:
                return self._measured(self._earlier())
            if self._costs is None:
                stored = self._stored()
                if stored is None:
                    return self._measured(None)
                if self._is_due(stored):
                    log.info("other work disturbed the cost table when it was measured; it is measured again")
                    return self._measured(stored)
                self._costs = stored
            return self._costs

    def costs_for_benchmark(self) -> CostModel:
        """The table, measured again if it is older than an hour or disturbed, up to `BENCHMARK_ATTEMPTS` times.

        Raises ValueError if there is no diffusion view to plan for.
        """
        self._need_view()
        with self._lock:
            costs = self._earlier()
            if costs is not None and not costs.disturbed and file_cache.age_of(self.key) <= BENCHMARK_MAX_AGE:
                self._costs, self._assumed = costs, False
                return costs
            for _ in range(BENCHMARK_ATTEMPTS):
                costs = self._measured(costs)
                if self.newest is not None and not self.newest.disturbed:
                    break
            assert costs is not None
            return costs

    def measure_again(self, interrupted: Callable[[], bool]) -> CostModel | None:
        """Measure again, and keep the better table as `costs` does. `interrupted` is asked before every pass: once it
        is true, the result is None, and the table stays as it was."""
        with self._lock:
            try:
                return self._measured(self._earlier(), interrupted)
            except MeasuringInterrupted:
                return None

    def _need_view(self) -> None:
        if self._runner.diffusion is None:
            raise ValueError("without a diffusion view there is nothing to plan: see --adapter")

    def _measured(self, earlier: CostModel | None, interrupted: Callable[[], bool] | None = None) -> CostModel:
        """Measure, and keep the new table or the earlier one, on disk too."""
        newest = measure(self._runner) if interrupted is None else measure(self._runner, interrupted)
        keep_earlier = earlier is not None and newest.disturbed and earlier.spread < newest.spread
        costs = earlier if earlier is not None and keep_earlier else newest
        if not keep_earlier or costs.disturbed:  # written again, a disturbed table is not due at once
            costs = self._cached(lambda: costs, refresh=True)
        if newest.disturbed:
            log.info("other work disturbed the measurement of the cost table; a later run measures it again")
        self.newest, self._costs, self._assumed = newest, costs, False
        return costs

    def _is_due(self, costs: CostModel) -> bool:
        """Whether a table from the disk was disturbed, long enough ago that another measurement may go better."""
        return costs.disturbed and file_cache.age_of(self.key) > MEASURE_AGAIN_AFTER

    def _earlier(self) -> CostModel | None:
        """The table that was measured before, by this process or another one."""
        return self._stored() or (None if self._assumed else self._costs)

    def _stored(self) -> CostModel | None:
        def missing() -> NoReturn:
            raise _NoTableError

        try:
            return self._cached(missing, refresh=False)
        except _NoTableError:
            return None

    def _cached(self, compute: Callable[[], CostModel], *, refresh: bool) -> CostModel:
        costs: CostModel = file_cache.cached_json(
            self.key, lambda: compute().as_dict(), read=CostModel.of, refresh=refresh
        )
        return costs
