"""`orthrus doctor`: which kernels run on this machine, and whether output is bit-identical to plain decoding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli import _doctor
from orthrus.cli._costs import measure_costs, timed
from orthrus.cli._help import LOADING, OUTPUT
from orthrus.cli._plan import print_costs
from orthrus.cli._shared import (
    AdapterOption,
    DeviceOption,
    Dtype,
    ModelOption,
    QuantizeOption,
    load_model,
    status,
    table_console,
)

if TYPE_CHECKING:
    from pathlib import Path

    from orthrus.api import Model


def command(
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Dtype to check; may be repeated.", show_default="both", rich_help_panel=LOADING),
    ] = None,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cost: Annotated[bool, typer.Option("--cost", help="Also measure how much exactness slows plain decoding.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also measure the cost table of `--cycle auto` again.")
    ] = False,
    compile_here: Annotated[
        bool,
        typer.Option(
            "--compile", help="First compile the C kernels for this processor, and compare them with those built ahead."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print every kernel and probe, versions and files.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Report what this machine has, which kernels run, which bits hold, and how fast; exit code 1 if a probe fails.

    Speeds are estimates: passes are timed once per machine, and the acceptance is that of the adapter's validation.
    A probe runs a kernel at the shapes of the model with different numbers of rows, offsets, masked keys and batch
    neighbours, and compares bits. `pad rows to` and `max rows` (JSON: `pad to`, `at most`) are the least restrictive
    layout of rows for which the bits were equal.
    """
    report: dict[str, Any] = {}
    for precision in dtype or list(Dtype):
        compiled = _compile(precision) if compile_here else None
        loaded = load_model(model, adapter, precision, device, quantize=quantize, cache=False)
        report.setdefault("machine", _machine(loaded))
        report[precision.value] = _probes(loaded) | ({"cost": _cost(loaded)} if cost else {})
        if calibrate and loaded.decoder.diffusion is not None:
            report[precision.value]["passes"] = _calibrated(loaded)
        report[precision.value]["expected"] = _doctor.expected(loaded)
        report[precision.value]["faster"] = _doctor.hints(loaded, report[precision.value])
        if compiled is not None:
            report[precision.value]["compiled"] = _compared(loaded, precision, compiled)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        console = table_console()
        _doctor.print_summary(console, report, model)
        _print(console, report, verbose=verbose)
    if not all(part["exact"] for name, part in report.items() if name != "machine"):
        raise typer.Exit(1)


def _calibrated(model: Model) -> dict[str, Any]:
    measure_costs(model, refresh=True)
    return model.costs().as_dict()


def _compile(precision: Dtype) -> Path:
    """The library for this processor, compiled if it was not. Raises ValueError where it cannot be."""
    from orthrus.backends.native import build, compiler
    from orthrus.file_cache import cache_directory

    with status(f"compiling the C kernels for {precision.value}"):
        try:
            return build.compile_here(precision.value, cache_directory())
        except compiler.UnavailableError as error:
            raise ValueError(f"{error}\n{error.output}".strip()) from error


def _compared(model: Model, precision: Dtype, compiled: Path) -> list[dict[str, Any]]:
    """The library built ahead and the compiled one, pass by pass; empty where there is none built ahead."""
    from orthrus.backends.native import levels, prebuilt
    from orthrus.bench import libraries

    usable = levels.runnable(levels.processor_features())
    ahead = prebuilt.find(precision.value, usable, prebuilt.LIBRARIES)
    return libraries.compare(model.runner, ahead, compiled) if ahead else []


def _machine(model: Model) -> dict[str, Any]:
    from orthrus import tensor_cache
    from orthrus.bench import provenance

    used, most = tensor_cache.used() / 1e6, tensor_cache.limit() / 1e6
    kept = f"{used:.0f} MB of at most {most:.0f} MB in {tensor_cache.directory()} ({tensor_cache.LIMIT} sets the limit)"
    return {**provenance.machine(model.decoder.device), "packed weights": kept}


def _probes(model: Model) -> dict[str, Any]:
    runner, kernels = model.runner, {}
    for name, linear in runner.decoder.linears().items():
        label = f"{name.split('.')[-1]} [{linear.shape[0]} x {linear.shape[1]}]"
        label = f"view's {label}" if ".diffusion." in name else label
        kernels[label] = {"kernel": linear.name, **_rule(linear.rule)}
    attention = {
        "kernel": getattr(runner.attention.attend, "__name__", "?").replace("_", " "),
        **_rule(runner.attention.rule),
    }
    return {
        "model": _described(model),
        "exact": runner.exact,
        "keys rounded to": runner.attention.key_multiple,
        "between products": runner.kernels.name,
        "library": _library(runner.kernels),
        "notice": runner.kernels.notice,
        "compiler": runner.kernels.details or None,
        "warnings": model.warnings,
        "left to the reference": runner.kernels.lacking(runner.config),
        "kernels": {**kernels, "attention": attention},
    }


def _described(model: Model) -> str:
    config, view = model.decoder.config, model.decoder.diffusion
    drafts = f"{model.checkpoint.view}, blocks of {view.block_size}" if view else "none"
    return f"{config.family}, {config.layers} layers, hidden size {config.hidden_size}; diffusion view: {drafts}"


def _library(kernels: Any) -> str | None:
    from orthrus.backends.native import build
    from orthrus.backends.native.kernels import NativeKernels

    return f"{build.origin(kernels.path)}: {kernels.path}" if isinstance(kernels, NativeKernels) else None


def _rule(rule: Any) -> dict[str, Any]:
    return {"pad to": rule.multiple, "at most": rule.max_rows, "bits hold": rule.exact}


def _cost(model: Model) -> list[dict[str, Any]]:
    from orthrus.bench.measure import exactness_cost

    with timed():
        return [exactness_cost(model, context) for context in (100, 200, 450)]


def _print(console: Console, report: dict[str, Any], *, verbose: bool) -> None:
    """What was asked for beside the summary, and with `verbose` all details."""
    from orthrus.decoding.planning.cost_model import CostModel

    if verbose:
        machine = report["machine"]
        console.print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
    for dtype, part in report.items():
        if dtype == "machine":
            continue
        if verbose:
            _print_kernels(console, dtype, part)
        _print_compared(console, part.get("compiled"))
        for c in part.get("cost", ()):
            low, high = c["ratio_quartiles"]
            console.print(
                f"{dtype}: cost of exactness at {c['context']} tokens of context: {c['ratio']:.3f} x a pass without the"
                f" exact row layout ({c['exact_ms']:.2f} against {c['plain_ms']:.2f} ms, medians of n = {c['n']}"
                f" interleaved runs, quartiles of the ratio {low:.3f} to {high:.3f})"
            )
        if "passes" in part:
            print_costs(console, CostModel.of(part["passes"]))


def _print_kernels(console: Console, dtype: str, part: dict[str, Any]) -> None:
    table = Table(title=f"\n{dtype}: matrix products and attention", title_justify="left")
    for column in ("shape", "kernel", "pad rows to", "max rows", "bits equal"):
        table.add_column(column)
    for label, row in part["kernels"].items():
        held = "[green]yes[/]" if row["bits hold"] else "[red]NO[/]"
        table.add_row(label.replace("[", r"\["), row["kernel"], str(row["pad to"]), str(row["at most"]), held)
    console.print(table)
    console.print(
        f"elementwise kernels: {part['between products']}; keys padded to a multiple of {part['keys rounded to']}"
    )
    if part["library"]:
        console.print(f"library: {part['library']}", soft_wrap=True, markup=False)
    for note in filter(None, (part["notice"], part["compiler"])):
        console.print(note, style="yellow", markup=False)
    for feature in part["left to the reference"]:
        console.print(f"{feature}: the reference implementation runs", style="yellow", markup=False)


def _print_compared(console: Console, compared: list[dict[str, Any]] | None) -> None:
    if compared == []:
        console.print("there is no library built ahead to compare it with")
    for c in compared or ():
        low, high = c["ratio_quartiles"]
        bits = "the same bits" if c["same bits"] else "other bits"
        console.print(
            f"compiled here: {c['ratio']:.3f} x the time of the library built ahead, {c['rows']} rows per pass"
            f" ({c['after_ms']:.2f} against {c['before_ms']:.2f} ms, medians of n = {c['n']} interleaved pairs,"
            f" quartiles of the ratio {low:.3f} to {high:.3f}); {bits}"
        )
