"""CUDA graphs: a pass is recorded once per shape and replayed, since launching its kernels one by one takes longer.

Between passes of one shape only integers change (tokens, positions, slots, what is attended to, which rows give
logits). They lie in one tensor that the recorded work reads. Everything else is part of the shape.
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
from orthrus.runner.eager import EagerExecutor
from orthrus.runner.executor import PassResult

MAX_GRAPH_ROWS, MAX_GRAPHS = 128, 128
"""Larger passes keep a device busy while they are launched. LRU eviction of graphs."""
Record = Callable[[Callable[[], PassResult]], tuple[PassResult, Callable[[], None]]]


def on_cuda() -> Record:
    """Records work as CUDA graphs, which share one memory pool: returns its results, and what computes them again."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], PassResult]) -> tuple[PassResult, Callable[[], None]]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()  # compiles what is not yet compiled for these very tensors, which a recording must not do
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = work()
        return results, graph.replay

    return record


@dataclass(frozen=True)
class _Graph:
    integers: Tensor
    results: PassResult
    replay: Callable[[], None]
    kept: Any  # what its kernels read at fixed addresses


class CUDAGraphs:
    """The passes of one decoder. The eager executor is its reference implementation, and what is recorded."""

    def __init__(self, eager: EagerExecutor, record: Record) -> None:
        self._eager, self._record, self._lock = eager, record, Lock()
        self._graphs: dict[Any, _Graph | None] = {}

    def run(self, batch: ForwardBatch) -> PassResult:
        """See `Executor`. The first pass of a shape is launched (kernels are compiled then), its second recorded."""
        if sum(len(rows.tokens) for rows in batch.views) > MAX_GRAPH_ROWS:
            return self._eager.run(batch)
        keys, values = batch.cache.storage
        batch = replace(batch, span=keys.shape[3])  # a recorded pass is replayed over longer contexts
        storage = keys.data_ptr(), values.data_ptr(), keys.shape, keys.stride()
        shape = (*(rows.shape for rows in batch.views), len(batch.logit_rows), batch.num_logits, *storage)
        with self._lock:
            if shape not in self._graphs:
                self._graphs[shape] = None
                return self._eager.run(batch)
            graph = self._graphs.pop(shape) or self._recorded(batch)
            self._graphs[shape] = graph
            while len(self._graphs) > MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph.integers.copy_(torch.tensor([*chain(*batch.integers)]))
            graph.replay()
            logits, hidden = graph.results
            return PassResult(logits.clone(), hidden.clone())

    def _recorded(self, batch: ForwardBatch) -> _Graph:
        decoder = self._eager.decoder
        integers = torch.tensor([*chain(*batch.integers)], device=decoder.device)
        kept = decoder.rope.tables(batch.span)  # first: a table that grows is another one
        return _Graph(integers, *self._record(lambda: self._eager.forward(batch, integers)), kept)
