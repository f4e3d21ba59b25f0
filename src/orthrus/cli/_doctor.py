"""The report of `orthrus doctor` in ten lines: what this machine has, what runs, which bits hold, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from orthrus.api import Model

LINES = 10
"""Lines of the report: what room is left holds hints, at least one."""


def expected(model: Model) -> dict[str, Any]:
    """Expected tokens per second, from the cost table; it is measured first if there is none. Empty without a view,
    for which there is no table."""
    from dataclasses import asdict

    from orthrus.bench import estimate

    if model.decoder.diffusion is None:
        return {}
    costs = model.costs()
    found = estimate.expected(costs, estimate.by_offset(model.checkpoint.provenance))
    return {**asdict(found), "gain": found.gain, "disturbed": costs.disturbed}


def hints(model: Model, part: dict[str, Any]) -> list[str]:
    """What would make this model faster here, the most effective first."""
    return [*_hints(model, part)]


def _hints(model: Model, part: dict[str, Any]) -> Iterator[str]:
    import torch

    from orthrus.bench import estimate

    machine, decoder = model.runner, model.decoder
    if decoder.device.type == "cpu" and torch.cuda.is_available():
        yield "--device cuda: there is a GPU here"
    if machine.kernels.notice:
        yield machine.kernels.notice
    yield from model.warnings
    if decoder.diffusion is None:
        yield "a diffusion view (--adapter, or `orthrus train`): without one only plain decoding runs"
    for feature in part["left to the reference"]:
        yield f"a model without {feature}: the reference implementation runs it"
    if part["expected"].get("disturbed"):
        yield "a quiet machine: other programs ran while passes were timed; `--calibrate` times them again"
    if str(decoder.dtype) == "torch.float32":
        yield "--dtype bfloat16: it reads half the bytes"
    elif machine.kernels.name == "native C" and estimate.bytes_per_weight(machine) > 1.9:
        yield "--quantize int8, where another model will do: it reads half the bytes"


def print_summary(console: Console, report: dict[str, Any], model: str) -> None:
    """Print the report, one line per fact."""
    machine = report["machine"]
    parts = {name: part for name, part in report.items() if name != "machine"}
    device = machine["accelerator"] or f"{machine['cpu']} ({machine['capability']})"
    _line(console, "machine", f"{device}; threads {machine['threads']}, cores {machine['cores']}")
    first = next(iter(parts.values()))
    _line(console, "model", f"{model}: {first['model']}")
    for name, part in parts.items():
        library = part["between products"]
        kernels = sorted({row["kernel"].removeprefix(f"{library}, ") for row in part["kernels"].values()})
        _line(console, name, f"{library} kernels: {'; '.join(kernels)}")
        held = "bits hold: output is bit-identical to plain decoding"
        lost = "NO layout of rows gives identical bits: tokens may differ from plain decoding"
        _line(console, "", held if part["exact"] else lost, "green" if part["exact"] else "bold red")
        _line(console, "", _speed(part["expected"]))
    found = dict.fromkeys(hint for part in parts.values() for hint in part["faster"])
    if len(parts) > 1:
        found.pop("--dtype bfloat16: it reads half the bytes", None)
    room = LINES - 3 - 3 * len(parts)
    for number, hint in enumerate([*found][:room] or ["nothing that this command knows of"]):
        _line(console, "" if number else "faster", " ".join(hint.split()), "yellow" if found else "")
    _line(console, "more", "--verbose: every kernel and probe; `orthrus verify`: tokens against plain decoding")


def _speed(expected: dict[str, Any]) -> str:
    if not expected:
        return "no estimate of the speed without a diffusion view"
    plain = f"about {expected['plain']:,.0f} tok/s plain"
    if expected["auto"] is None:
        return f"{plain} (an estimate); `auto` is unknown: `orthrus bench acceptance` measures this view"
    return (
        f"{plain}, {expected['auto']:,.0f} with `auto` ({expected['gain']:.1f} x): an estimate at"
        f" {expected['acceptance']:.1f} accepted drafts per cycle"
    )


def _line(console: Console, name: str, text: str, style: str = "") -> None:
    console.print(Text(f"{name:<10}") + Text(text, style), soft_wrap=True)
