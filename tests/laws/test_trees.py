"""Law 1 for trees of AR rows: a row of a tree has the bits of plain decoding of its path."""

from __future__ import annotations

import random

import pytest
import tiny
from tree_checks import check_blocks, check_rows, random_parents

from orthrus.model import families

KERNELS = ("native", "torch", "native int8")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_rows_of_trees_equal_plain_decoding_of_their_paths(family, dtype, kernels):
    runner = tiny.runner(family, dtype, kernels=kernels)
    assert runner.exact
    rng = random.Random(family)
    shapes = [random_parents(rng, rng.randint(2, 16)) for _ in range(3)] + [list(range(-1, 4))]
    check_rows(runner, [11, 250, 29, 40], shapes)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
@pytest.mark.parametrize("family", families.names())
def test_blocks_in_trees_equal_blocks_after_their_paths(family, dtype, kernels):
    rng = random.Random(family)
    shapes = [random_parents(rng, rng.randint(2, 16)) for _ in range(3)] + [list(range(-1, 4))]
    check_blocks(tiny.runner(family, dtype, kernels=kernels), [11, 250, 29, 40], shapes)
