"""The forms of each linear map of a shape: time by rows, and the rule of rows under which bits hold."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch

from orthrus.backends.interface import MAX_ROWS, ExecutableLinear, Kernels
from orthrus.backends.invariance import find_row_rule
from orthrus.backends.linears import TorchLinear
from orthrus.bench import shapes
from orthrus.bench.gpu.settings import AbsentError, Settings
from orthrus.model.linear import Linear

ROWS = (1, 8, 16, 17, 32, 64, 128, 512)
CALLS = 20
"""Calls per measurement, without waiting for the device between them."""


def measure(settings: Settings, shape: str) -> Iterator[dict[str, Any]]:
    """Yields the result after each distinct map of one layer and the head."""
    try:
        from orthrus.backends.triton.kernels import TritonKernels
    except ImportError as error:
        raise AbsentError("Triton is not installed") from error
    kernels, sizes = TritonKernels(), shapes.TINY if settings.dry_run else shapes.QWEN3[shape]
    # the interpreter computes bf16 products as integers
    dtype = torch.float16 if settings.dry_run else torch.bfloat16
    decoder = shapes.random_decoder(sizes._replace(layers=1), dtype, settings.device, block_size=4)
    result: dict[str, Any] = {"linears": []}
    for name, plain in decoder.linears().items():
        if ".diffusion." in name:
            continue
        for linear in _forms(kernels, plain):
            result["linears"].append(_measured(settings, name, linear, plain))
            yield result


def _forms(kernels: Kernels, plain: Linear) -> Iterator[ExecutableLinear]:
    for form in kernels.packed(plain):
        try:
            linear = form()
        except RuntimeError:
            continue  # it cannot run on this machine
        yield linear
    yield TorchLinear(plain)


def _measured(settings: Settings, name: str, linear: ExecutableLinear, plain: Linear) -> dict[str, Any]:
    rows_NI = torch.randn(MAX_ROWS, plain.shape[1], device=settings.device).to(plain.dtype)
    counts = (1, 17) if settings.dry_run else ROWS
    record: dict[str, Any] = {"map": name, "shape": list(plain.shape), "kernel": linear.name}
    try:
        if not settings.dry_run:
            record["rule"] = vars(find_row_rule(linear.probe, rows_NI, linear.min_multiple))
        record["seconds"] = {str(count): _seconds(settings, linear, rows_NI[:count]) for count in counts}
    except RuntimeError as error:
        return record | {"error": str(error)}
    return record | {"gigabytes_per_second": plain.weight.nbytes / record["seconds"]["1"] / 1e9}


def _seconds(settings: Settings, linear: ExecutableLinear, rows_NI: torch.Tensor) -> float:
    """Median seconds of a call of the kernel on all rows at once."""
    calls, times = 1 if settings.dry_run else CALLS, []
    for _ in range(2 if settings.dry_run else 7):
        settings.wait()
        start = perf_counter()
        for _ in range(calls):
            linear.run(rows_NI)
        settings.wait()
        times.append((perf_counter() - start) / calls)
    return median(times[1:])


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    return "; ".join(
        f"{one['map'].rsplit('.', 1)[-1]} by {one['kernel']}: "
        + (f"{one['gigabytes_per_second']:,.0f} GB/s at one row" if "seconds" in one else one["error"][:60])
        for one in result["linears"]
    )


def advice(result: dict[str, Any]) -> list[str]:
    """Maps that another form would run faster at one row."""
    lines: list[str] = []
    by_map: dict[str, list[dict[str, Any]]] = {}
    for one in result["linears"]:
        if "seconds" in one:
            by_map.setdefault(one["map"], []).append(one)
    for name, forms in by_map.items():
        first, best = forms[0], min(forms, key=lambda one: one["seconds"]["1"])
        if best["seconds"]["1"] < 0.9 * first["seconds"]["1"]:
            ratio = first["seconds"]["1"] / best["seconds"]["1"]
            lines.append(f"{name}: {best['kernel']} is {ratio:.2f} x faster than {first['kernel']} at one row")
    return lines
