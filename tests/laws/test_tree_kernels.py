"""Law 1 for kernels: a row of a tree has the bits that it has alone, with the keys of its path in one piece."""

from __future__ import annotations

import ctypes
import itertools
import random
from types import ModuleType

import numpy as np
import pytest
import tiny
import torch
from tree_checks import path_to, random_parents

from orthrus.backends.native import kernels as native
from orthrus.batch import AttentionMetadata
from orthrus.config import PAGE
from orthrus.file_cache import cache_directory
from orthrus.masks import first_keys
from orthrus.runner.trees import tree_of

PAGES = [7, 2, 5, 0]
"""The pages of the one sequence of these tests, out of order."""
LENGTHS = (0, 1, 2, 31, 33, 100, 232, 250, 254, 255, 256, 257, 500, 511, 513)
"""Cached keys: odd and even, on both sides of tiles, chunks and pages."""


@pytest.fixture(
    name="kernels", params=[(dtype, on) for dtype in tiny.DTYPES for on in ("tiles", "vectors")], ids="-".join
)
def _kernels(request):
    dtype, unit = request.param
    found = native.load(tiny.DTYPES[dtype], cache_directory())
    if found is None or not found.supports_ragged_attention(64):
        pytest.skip("this processor has no ragged attention")
    if unit == "tiles" and (dtype != "bf16" or not found.library.has_amx()):
        pytest.skip("no tiles for these values or on this processor")
    if unit == "vectors":
        ctypes.c_int.in_dll(found.library, "use_amx").value = 0
    yield found, tiny.DTYPES[dtype]
    found.library.has_amx()


def slots_of(places):
    return [PAGES[place // PAGE] * PAGE + place % PAGE for place in places]


class Case:
    """Random queries of a tree of rows after `length` cached keys, and the keys and values of all."""

    def __init__(self, seed, length, rows, heads, dtype, window=None):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.parents, self.length, self.window = random_parents(rng, rows), length, window
        H, G, E = heads
        self.stored = [torch.randn(G, 8 * PAGE, E, generator=generator).to(dtype) for _ in "kv"]
        self.q = torch.randn(rows + 64, H, E, generator=generator).to(dtype)
        self.tables = torch.tensor([PAGES])

    def attend(self, kernels, q, stored, segments, kv_lens, tree=(None, None), view="ar"):
        """Attention of rows of which each segment lists first row, rows, and the places of its own keys."""
        starts = None if self.window is None else torch.tensor(first_keys(kv_lens, view, self.window))
        segments = torch.tensor([[first, rows, 0, *own] for first, rows, *own in segments])
        longest = int(segments[:, 1].max())
        scores = (0.2, 3.0) if self.window else (None, None)
        metadata = AttentionMetadata(segments, torch.tensor(kv_lens), self.tables, longest, starts, *scores, *tree)
        return kernels.attend(q, *stored, metadata)

    def along(self, path):
        """The keys and values as a chain of these rows has them."""
        targets, sources = (
            slots_of(range(self.length, self.length + len(path))),
            slots_of(self.length + r for r in path),
        )
        moved = [kept.clone() for kept in self.stored]
        for kept, own in zip(moved, self.stored, strict=True):
            kept[:, targets] = own[:, sources]
        return moved


def check(case, kernels):
    """All rows of a tree, then blocks of six rows rooted in some of them."""
    rows, length, made = len(case.parents), case.length, tree_of(case.parents)
    if made is None:
        return
    paths = torch.tensor([[length, *(length + r for r in path), *[0] * (rows - len(path))] for path in made.paths])
    kv_lens = [length + depth + 1 for depth in made.depths]
    found = case.attend(
        kernels, case.q[:rows], case.stored, [(0, rows, 0, 0)], kv_lens, (torch.tensor(made.row_paths), paths)
    )
    for row in range(rows):
        alone = case.along(path_to(case.parents, row))
        expected = case.attend(kernels, case.q[row : row + 1], alone, [(0, 1, 0, 0)], kv_lens[row : row + 1])
        assert torch.equal(found[row], expected[0]), (case.parents, length, row)
    width, roots = 6, sorted({0, rows // 2, rows - 1})
    own = [length + rows + 6 * n for n in range(len(roots))]
    own = [start if start % PAGE <= PAGE - 6 else start + 6 for start in own]
    segments = [(n * width, width, start, start + width) for n, start in enumerate(own)]
    kv_lens = [length + made.depths[root] for root in roots for _ in range(width)]
    row_paths = torch.tensor([made.row_paths[root] for root in roots for _ in range(width)])
    q = case.q[rows : rows + width * len(roots)]
    found = case.attend(kernels, q, case.stored, segments, kv_lens, (row_paths, paths), "diffusion")
    for n, root in enumerate(roots):
        part = slice(n * width, (n + 1) * width)
        alone = case.along(path_to(case.parents, root))
        expected = case.attend(kernels, q[part], alone, [(0, *segments[n][1:])], kv_lens[part], view="diffusion")
        assert torch.equal(found[part], expected), (case.parents, length, root)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 2, 16), (16, 2, 96), (20, 1, 32), (2, 2, 128)])
def test_rows_and_blocks_in_trees_have_the_bits_of_their_paths(kernels, heads, window):
    made, dtype = kernels
    for seed, (length, rows) in enumerate(itertools.product(LENGTHS, (2, 7, 17, 33, 70))):
        if (seed + len(heads)) % 3 == 0 or length in (0, 254):
            check(Case(seed, length, rows, heads, dtype, window), made)


@pytest.fixture(name="dots")
def _dots(monkeypatch):
    """Triton's interpreter with products whose rows do not depend on their place in a tile, as on a GPU. Those of BLAS,
    which it uses, do on some processors."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    own = ModuleType("numpy")
    vars(own).update(vars(np))
    own.matmul = lambda a, b, dtype=None: np.einsum("ij,jk->ik", a.astype(dtype), b.astype(dtype))
    monkeypatch.setattr(interpreter, "np", own)


@pytest.mark.usefixtures("dots")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, tests/gpu runs the kernels compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter computes bf16 products as integers
def test_the_same_on_triton(dtype):
    """The last case has too many rows to split its chunks over programs."""
    kernels = pytest.importorskip("orthrus.backends.triton.kernels").TritonKernels()
    for seed, (length, rows, heads) in enumerate([(33, 3, (4, 2, 16)), (254, 7, (2, 1, 32)), (253, 17, (4, 1, 16))]):
        check(Case(seed, length, rows, heads, dtype), kernels)
