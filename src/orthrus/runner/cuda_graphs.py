"""CUDA graphs: a pass recorded once for its shape and replayed: to launch its kernels one by one takes longer.

All that changes between passes of one shape are numbers (tokens, places, positions, what is seen, which rows are
wanted), which lie in one tensor that the recorded work reads. The rest is part of the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orthrus.cache import CacheWindow
from orthrus.runner.layout import Part

if TYPE_CHECKING:
    from orthrus.model.decoder import Decoder

MOST_ROWS, MOST_GRAPHS = 128, 128
"""Larger passes keep a device busy while they are launched; the graphs longest unused are given up."""
Results = tuple[Tensor, Tensor]
Record = Callable[[Callable[[], Results]], tuple[Results, Callable[[], None]]]


def on_cuda() -> Record:
    """Records work as CUDA graphs, which share one pool of memory: gives its results, and what computes them anew."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            work()  # compiles what is not yet compiled for these very tensors, which a recording must not do
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = work()
        return results, graph.replay

    return record


@dataclass(frozen=True)
class _Graph:
    numbers: Tensor
    results: Results
    replay: Callable[[], None]
    kept: Any  # what its kernels read at fixed addresses


class Graphs:
    """The passes of one decoder. Its slow twin is `Decoder.launch`, which is also what is recorded."""

    def __init__(self, decoder: Decoder, record: Record) -> None:
        self._decoder, self._record, self._lock = decoder, record, Lock()
        self._graphs: dict[Any, _Graph | None] = {}

    def run(self, parts: list[Part], picked: list[int], wanted: int, cache: CacheWindow) -> Results:
        """As `Decoder.launch`: a shape's first pass is launched (kernels are compiled then), its second recorded."""
        keys, values = cache.storage
        launch = partial(self._decoder.launch, wanted=wanted, cache=cache, span=keys.shape[3])
        if sum(len(part.tokens) for part in parts) > MOST_ROWS:
            return launch(parts, picked)
        shapes = [(p.view, len(p.tokens), len(p.positions), p.attended, len(p.runs), p.most) for p in parts]
        shape = (*shapes, len(picked), wanted, keys.data_ptr(), values.data_ptr(), keys.shape, keys.stride())
        lists = [*chain(*(part.numbers for part in parts)), picked]
        with self._lock:
            if shape not in self._graphs:
                self._graphs[shape] = None
                return launch(parts, picked)
            graph = self._graphs.pop(shape) or self._recorded(parts, lists, launch, keys.shape[3])
            self._graphs[shape] = graph
            while len(self._graphs) > MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph.numbers.copy_(torch.tensor([*chain(*lists)]))
            graph.replay()
            logits, hidden = graph.results
            return logits.clone(), hidden.clone()

    def _recorded(
        self, parts: list[Part], lists: list[list[int]], launch: Callable[[list[Part], Tensor], Results], span: int
    ) -> _Graph:
        numbers = torch.tensor([*chain(*lists)], device=self._decoder.device)
        *views, picked = numbers.split([len(values) for values in lists])
        each = len(views) // len(parts)

        def work() -> Results:
            static = [part.over(views[n * each : (n + 1) * each]) for n, part in enumerate(parts)]
            return launch(static, picked)

        kept = self._decoder.rope.tables(span)  # first: a table that grows is another one
        return _Graph(numbers, *self._record(work), kept)
