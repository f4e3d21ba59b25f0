"""Bytes that a cycle needs beyond plain decoding at a given context: KV cache and workspace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orthrus.cache import BlockTable
from orthrus.runner.native import NativeForward
from orthrus.runner.runner import Runner


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storage allocated while active, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages it allocated."""
        out = func(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in inputs and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """Storages of all tensors in a tree, except packed (mkldnn) weights, which do not expose theirs."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn]
    return [tensor.untyped_storage() for tensor in tensors]


@dataclass(frozen=True)
class Extra:
    """Memory of the cycles for one sequence at one context. cache: bytes of its pages of keys and values.

    plain: workspace of a one-row AR pass; two_pass and one_pass: additional bytes of these cycles, cache included.
    """

    context: int
    cache: int
    plain: int
    two_pass: int
    one_pass: int


def extra_of(runner: Runner, context: int, width: int) -> Extra:
    """Measure the passes of each cycle with `context` cached tokens; the cached values do not matter."""
    row, rows = [[0]], [[0] * width]

    def plain(tables: list[BlockTable]) -> None:
        runner.ar(row, tables)

    def two_pass(tables: list[BlockTable]) -> None:
        runner.diffuse([0], width, tables, rows=width)
        runner.ar(rows, tables)

    def one_pass(tables: list[BlockTable]) -> None:
        blocks = runner.ar_and_diffuse(rows, [range(width)], width, tables).blocks[0]
        runner.logits(blocks[0])

    peaks = {run.__name__: _peak(runner, context, run) for run in (plain, two_pass, one_pass)}
    allocated, workspace = peaks["plain"]
    return Extra(
        context, allocated, workspace,
        *(held - allocated + peak - workspace for held, peak in (peaks["two_pass"], peaks["one_pass"])),
    )  # fmt: skip


def _peak(runner: Runner, context: int, run: Callable[[list[BlockTable]], None]) -> tuple[int, int]:
    """Bytes of the cache after the pass, and the peak bytes of everything else allocated in it."""
    tables = runner.new_tables(1, context)
    (table,) = tables
    table.reserve(context)
    table.commit(context)
    run(tables)  # takes the pages that the pass needs
    for executor in runner.executors:
        if isinstance(executor, NativeForward):
            executor.free_workspace()
    with PeakBytes() as counted:
        run(tables)
    return len(table.pages) * table.cache.page_bytes, counted.peak
