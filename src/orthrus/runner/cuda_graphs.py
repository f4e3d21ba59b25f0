"""CUDA graphs: a pass is captured once per shape and then replayed, which is faster than launching its kernels.

Passes of one shape differ only in integers (tokens, positions, slots, attention metadata, logit rows). The captured
kernels read them from one tensor. Everything else is part of the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from orthrus.batch import ForwardBatch
from orthrus.config import PAGE
from orthrus.runner.eager import EagerExecutor
from orthrus.runner.executor import PassResult

MAX_GRAPH_ROWS, MAX_GRAPHS = 128, 128
"""Passes with more rows run eagerly: they keep the device busy while they are launched. LRU eviction of graphs."""
CAPTURING = Lock()
"""Held while any model of the process captures a pass."""
Capture = Callable[[Callable[[], PassResult]], tuple[PassResult, Callable[[], None]]]


def capture_on_cuda(device: torch.device) -> Capture:
    """Capture work as CUDA graphs that share one memory pool. A capture returns the results and a replay function.

    The stream of the captures is one of this device, since the one that torch would choose is of the first device on
    which the process captured anything.
    """
    pool, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def capture(work: Callable[[], PassResult]) -> tuple[PassResult, Callable[[], None]]:
        with CAPTURING, torch.cuda.device(device):
            return captured(work)

    def captured(work: Callable[[], PassResult]) -> tuple[PassResult, Callable[[], None]]:
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()  # compiles kernels that are not compiled yet, which is not allowed during capture
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads may allocate memory or wait for the device meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            results = work()
        return results, graph.replay

    return capture


@dataclass(frozen=True)
class _Graph:
    integers: Tensor
    results: PassResult
    replay: Callable[[], None]
    kept: Any  # tensors that the kernels read at fixed addresses


class CUDAGraphs:
    """Runs passes of one decoder as CUDA graphs of the eager executor, which is also the reference implementation."""

    def __init__(self, eager: EagerExecutor, capture: Capture) -> None:
        self._eager, self._capture, self._lock = eager, capture, Lock()
        self._graphs: dict[Any, _Graph | None] = {}

    def run(self, batch: ForwardBatch) -> PassResult:
        """See `Executor`. The first pass of a shape runs eagerly and compiles kernels; the second one is captured."""
        if sum(len(rows.tokens) for rows in batch.views) > MAX_GRAPH_ROWS:
            return self._eager.run(batch)
        batch = _padded(batch)  # a captured pass is also replayed at longer contexts
        keys, values = batch.cache.keys, batch.cache.values
        paths = len(batch.path_tables), len(batch.path_tables[0]) if batch.path_tables else 0
        sizes = len(batch.logit_rows), batch.num_logits, len(batch.block_tables), batch.span, paths
        shape = (*(rows.shape for rows in batch.views), *sizes, keys.data_ptr(), values.data_ptr(), keys.shape)
        with self._lock:
            if shape not in self._graphs:
                self._graphs[shape] = None
                return self._eager.run(batch)
            graph = self._graphs.pop(shape) or self._captured(batch)
            self._graphs[shape] = graph
            while len(self._graphs) > MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph.integers.copy_(torch.tensor([*chain(*batch.integers)]))
            graph.replay()
            logits, hidden = graph.results
            return PassResult(logits.clone(), hidden.clone())

    def _captured(self, batch: ForwardBatch) -> _Graph:
        decoder = self._eager.decoder
        integers = torch.tensor([*chain(*batch.integers)], device=decoder.device)
        kept = [rope.tables(batch.span) for rope in decoder.ropes]  # before capture: growing reallocates a table
        return _Graph(integers, *self._capture(lambda: self._eager.forward(batch, integers)), kept)


def _padded(batch: ForwardBatch) -> ForwardBatch:
    """The batch with block tables of a power of two pages, of which at most a few shapes exist, and path tables of
    powers of two paths and places."""
    columns = _power_of_two(len(batch.block_tables[0]))
    tables = [own + [0] * (columns - len(own)) for own in batch.block_tables]
    paths = batch.path_tables
    if paths:
        places = 1 + _power_of_two(len(paths[0]) - 1)
        paths = [own + [0] * (places - len(own)) for own in paths]
        paths += [[0] * places] * (_power_of_two(len(paths)) - len(paths))
    return replace(batch, block_tables=tables, path_tables=paths, span=columns * PAGE)


def _power_of_two(count: int) -> int:
    """The smallest that is at least `count`."""
    return 1 << (count - 1).bit_length()
