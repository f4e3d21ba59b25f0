"""Law 1 for trees of AR rows: a row of a tree has the bits of plain decoding of its path."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from tree_checks import check_blocks, check_rows, path_to, prefilled, random_parents

import orthrus
from orthrus.config import PAGE
from orthrus.model import families
from orthrus.runner.layout import forward_batch
from orthrus.runner.tails import tails_of
from orthrus.runner.trees import path_tables, tree_of, trees_of

KERNELS = ("native", "torch", "native int8")


@pytest.mark.parametrize("kernels", [*KERNELS, "torch int8"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_rows_of_trees_equal_plain_decoding_of_their_paths(family, dtype, kernels):
    runner = tiny.runner(family, dtype, kernels=kernels)
    assert runner.exact
    rng = random.Random(family)
    shapes = [random_parents(rng, rows) for rows in (rng.randint(2, 16), rng.randint(2, 16), 32)] + [list(range(-1, 4))]
    check_rows(runner, [11, 250, 29, 40], shapes)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_blocks_in_trees_equal_blocks_after_their_paths(family, dtype, kernels):
    rng = random.Random(family)
    shapes = [random_parents(rng, rows) for rows in (rng.randint(2, 16), rng.randint(2, 16), 32)] + [list(range(-1, 4))]
    check_blocks(tiny.runner(family, dtype, kernels=kernels), [11, 250, 29, 40], shapes)


def bushy(rows):
    """A tree of many rows and few levels."""
    return [-1, *(row // 3 for row in range(rows - 1))]


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_trees_at_the_end_of_the_context_and_across_pages(dtype, kernels):
    """The rows reach beyond the last position, none of them has one beyond it."""
    runner = tiny.runner("qwen3", dtype, kernels=kernels)
    last = runner.config.max_positions
    for length, rows in ((last - 4, 33), (2 * PAGE - 2, 32), (2 * PAGE - 1, 9)):
        assert length + tree_of(bushy(rows)).height <= last
        check_rows(runner, [length], [bushy(rows)])
        check_blocks(runner, [length], [bushy(rows)])


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"])
def test_trees_of_a_real_model(dtype):
    """Its heads go by matrix tiles, where the processor has them."""
    runner, rng = orthrus.load("smollm2-demo", dtype=dtype).runner, random.Random(0)
    for length in (40, 255, 300):
        shape = random_parents(rng, 17)
        check_rows(runner, [length], [shape], length)
        check_blocks(runner, [length], [shape], seed=length)


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_the_cache_after_a_path_equals_a_fresh_prefill(family, dtype):
    runner, prompt, drafts = tiny.runner(family, dtype), tiny.request(250).prompt, tiny.request(13, seed=1).prompt
    (table,), (fresh,) = runner.new_tables(), runner.new_tables()
    parents = [-1, 0, 0, 1, 2, 4, 4, 6, 3, 7, 9, 9, 11]
    runner.ar([prompt], [table], logit_rows=[])
    table.commit(len(prompt))
    runner.ar_and_diffuse([drafts], [[0, 12]], 4, [table], parents=[parents])
    table.commit_path(path := path_to(parents, 12))
    runner.ar([[*prompt, *(drafts[row] for row in path)]], [fresh], logit_rows=[])
    fresh.commit(table.length)
    for stored, expected in zip(tiny.cached(table), tiny.cached(fresh), strict=True):
        assert stored.shape[2] == 250 + len(path) and torch.equal(stored, expected)


def test_a_chain_stated_by_its_parents_is_laid_out_as_a_chain():
    assert tree_of([-1, 0, 1, 2]) is None
    assert trees_of([None, [-1, 0], [-1, 0, 0]], 3)[:2] == [None, None]
    runner = tiny.runner("llama")
    tables = prefilled(runner, [7, 20])
    tables[0].reserve(40)
    assert not runner.layout.ar_rows([[1, 2], [3]], tables, [None, None]).row_paths


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_the_metadata_of_a_tree_does_not_grow_with_the_context(kernels):
    """Law 9. Block tables name the pages of the context, as for chains."""
    runner, parents = tiny.runner("llama", kernels=kernels), bushy(16)
    sizes = []
    for length in (40, 1500):
        tables, trees = prefilled(runner, [length]), trees_of([parents], 1)
        tables[0].reserve(length + 16)
        rows = runner.layout.ar_rows([[1] * 16], tables, trees)
        batch = forward_batch([rows], tables, length + 16, [0], 1, path_tables(trees, tables))
        moved = [tail.sources.numel() + tail.targets.numel() for tail in tails_of(rows, batch)]
        sizes.append(([len(own) for own in rows.integers], len(batch.path_tables), len(batch.path_tables[0]), moved))
    assert sizes[0] == sizes[1]
    assert max(moved) <= 2 * 16
