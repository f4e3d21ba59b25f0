"""Compiles the Triton kernels for a GPU that need not be here, and prints what they need as JSON.

`python tests/compile_triton.py ARCHITECTURE DTYPE HEAD_DIM`, such as `90 bf16 128`. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import itertools
import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from orthrus.backends.triton import device
from orthrus.backends.triton import kernels as gpu
from orthrus.config import PAGE

ALIGNED = [["tt.divisibility", 16]]


def compiled(kernel, architecture, types, constants, aligned, stages):
    """Shared memory, and the matrix instructions of a kernel."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    missing = {name: None for name in kernel.arg_names if name not in types and name not in constants}
    attributes = {(n,): ALIGNED for n, name in enumerate(kernel.arg_names) if name in aligned and name in types}
    source = ASTSource(kernel, signature, {**constants, **missing}, attributes)
    options = {"num_stages": stages, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    found = set(re.findall(r"wgmma\.mma_async\S*|mma\.sync\S*", made.asm["ptx"]))
    return {"shared": made.metadata.shared, "instructions": sorted(found)}


def attention(architecture, dtype, size, *, split, tree):
    tensors = ("q", "keys", "values", "out")
    types = dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(("all_sums", "all_tops", "all_totals"), "*fp32")
    types |= dict.fromkeys(("segments", "all_kv_lens", "tables", "paths", *["row_paths"] * tree), "*i64")
    types |= dict.fromkeys(("columns", "path_columns", "tiles", "H", "per_head"), "i32") | {"scale": "fp32"}
    bytes_of = 4 if dtype == "fp32" else 2
    constants = {
        "GROUP": 3, "ROWS": 1 if tree else gpu.QUERIES // 3, "E": size, "QUERIES": gpu.QUERIES,
        "KEYS": gpu.keys_per_step(size, bytes_of), "CHUNK": gpu.CHUNK, "PAGE": PAGE, "SPLIT": split, "TREE": tree,
    }  # fmt: skip
    stages = 2 if size * bytes_of <= gpu.WIDE_KEY else 1
    return compiled(device.attend_segment, architecture, types, constants, (*tensors, "per_head"), stages)


def linear(architecture, dtype, rows, width, depth):
    types = dict.fromkeys(("x", "weight", "out"), f"*{dtype}") | dict.fromkeys(("N", "outs", "ins"), "i32")
    constants = {"ROWS": rows, "OUTPUTS": width, "INPUTS": depth, "BIAS": False}
    aligned = ("x", "weight", "out", "outs", "ins")
    return compiled(device.linear_tile, architecture, types, constants, aligned, 4)


def main(architecture, dtype, size):
    found = {
        f"attention, split {split}, tree {tree}": attention(architecture, dtype, size, split=split, tree=tree)
        for split, tree in itertools.product((True, False), repeat=2)
    }
    if dtype != "fp32":
        for rows in (gpu.SMALL_TILE, gpu.LARGE_TILE):
            for width, depth in gpu.TILES:
                found[f"linear, {rows} rows, {width} x {depth}"] = linear(architecture, dtype, rows, width, depth)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
