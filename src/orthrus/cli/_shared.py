"""Shared by several commands: options, model loading, progress."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from importlib.util import find_spec
from operator import length_hint
from pathlib import Path
from threading import Thread, Timer
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orthrus import file_cache
from orthrus.backends.native import build
from orthrus.checkpoint import known_models
from orthrus.cli._help import DRAFTING, LOADING

if TYPE_CHECKING:
    from orthrus.api import Model

T = TypeVar("T")
LINE_SECONDS = 30.0
"""Least time between two lines of progress where stderr is not a terminal."""


class Dtype(StrEnum):
    """Computing precision."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Quantize(StrEnum):
    """Which linear layers multiply int8 activations: all or none."""

    int8 = "int8"
    none = "none"


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name of `orthrus models`, a checkpoint directory, a .gguf file, or a hub id (owner/name).",
        rich_help_panel=LOADING,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        help="Adapter directory with a diffusion view for this backbone; `none` ignores a bundled view.",
        rich_help_panel=LOADING,
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="Computing precision.", rich_help_panel=LOADING)]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        help="`int8`: quantise weights and activations of all linear layers. `none`: compute in --dtype alone. Output"
        " is identical to plain decoding in the same arithmetic.",
        show_default="int8 activations for quantised weights of a GGUF file, else none",
        rich_help_panel=LOADING,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Device to run on: cpu, cuda, cuda:1, ...", rich_help_panel=LOADING)]
AllowOption = Annotated[
    bool,
    typer.Option(
        "--allow-other-backbone",
        help="Load an adapter trained on other weights of the same shape.",
        rich_help_panel=LOADING,
    ),
]
CycleOption = Annotated[
    str | None,
    typer.Option(
        help="auto (default) plans every pass; two-pass and one-pass are fixed, at full width; ar is plain decoding.",
        rich_help_panel=DRAFTING,
    ),
]
CacheOption = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep packed weights and the findings of the probes on disk, and start from them. `orthrus doctor"
        " --verbose` says where, how much, and what bounds it.",
        rich_help_panel=LOADING,
    ),
]
TASK = "Task name, JSONL file, or directory or packed file of distilled records; may be repeated."
stderr = Console(stderr=True, highlight=False)
PIPE_WIDTH = 200
"""Columns of a table in a pipe, which has no width of its own: rich would take 80, and cut names off."""


def table_console(*, silent: bool = False) -> Console:
    """The standard output for tables, wide enough for their names where it is a pipe."""
    console = Console(highlight=False, quiet=silent)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def quiet() -> None:
    """Silence the messages and progress bars of transformers and of the hub, whenever they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")


def compile_ahead(dtype: Dtype, device: str) -> None:
    """Begin to compile the C kernels if need be, in a thread. A command that imports torch before it loads its model
    calls this first: compiling then takes no time of its own. Another call waits for the first one."""
    if device == "cpu":
        ahead = (dtype.value, file_cache.cache_directory())
        Thread(target=build.compile_ahead, args=ahead, daemon=True).start()


def load_model(
    name: str,
    adapter: str | None,
    dtype: Dtype,
    device: str,
    allow_other_backbone: bool = False,
    quantize: Quantize | None = None,
    cache: bool = True,
    ctx_size: int | None = None,
) -> Model:
    """Load a model with a spinner on stderr; its warnings go there too."""
    quiet()
    with loading(name):
        compile_ahead(dtype, device)
        import orthrus

        model: Model = orthrus.load(
            name, adapter=adapter, dtype=dtype.value, device=device, allow_other_backbone=allow_other_backbone,
            quantize=None if quantize is None else quantize.value, cache=cache, ctx_size=ctx_size,
        )  # fmt: skip
    for warning in model.warnings:
        print_warning(f"warning: {warning}")
    return model


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A spinner on stderr while a model is loaded; a line before it where weights must be downloaded first."""
    if (notice := known_models.download_notice(name)) is not None:
        stderr.print(f"{name}: {notice}", markup=False, soft_wrap=True)
    with stderr.status(f"loading {name}"):
        yield


def print_warning(text: str) -> None:
    """Print a note or a warning on stderr: a terminal breaks it between words, a pipe or a file gets one line."""
    stderr.print(text, style="yellow", markup=False, soft_wrap=not stderr.is_terminal)


def print_notice(model: Model) -> None:
    """Print why the native kernels are not available, if they are not."""
    if model.runner.kernels.notice is not None:
        print_warning(f"note: {model.runner.kernels.notice}")


def check_plot(path: Path | None) -> None:
    """Raise ValueError where a picture is asked for that cannot be drawn, before the work that it would show."""
    if path is not None and find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'orthrus-lm[bench]'")


def missing_extra(what: str, error: ImportError, extra: str) -> ValueError:
    """The error that names a missing package and the extra that installs it."""
    return ValueError(f"{what} needs {error.name}, which is not installed: pip install 'orthrus-lm[{extra}]'")


@contextmanager
def status(text: str, after: float = 0.3) -> Iterator[None]:
    """Show `text` if the work takes longer than `after` seconds: a spinner on a terminal, else a line on stderr."""
    spinner = stderr.status(text)
    timer = Timer(after, spinner.start if stderr.is_terminal else lambda: stderr.print(text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        spinner.stop()


class ProgressLines:
    """Lines on stderr, which is a pipe or a file: every half minute, and with `at_once` after the first step."""

    def __init__(self, *, shown: bool, begun: int = 0, at_once: bool = False) -> None:
        """`begun`: the steps that were done before."""
        self.shown, self._begun = shown, begun
        self._started = perf_counter()
        self._told = self._started - LINE_SECONDS if at_once else self._started

    def tell(self, done: int, total: int, line: str) -> None:
        """Print `line`, which has places for `done` and `total`, and the estimated remaining time, if it is time to."""
        now = perf_counter()
        if not self.shown or now - self._told < LINE_SECONDS or done >= total:
            return
        left = (total - done) * (now - self._started) / max(1, done - self._begun)
        stderr.print(f"{line.format(done, total)}, ETA {timedelta(seconds=round(left))}", soft_wrap=True, markup=False)
        self._told = now


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar and ETA on stderr, which disappears at the end. A pipe gets a line, and further ones
    every half minute."""
    if not stderr.is_terminal:
        stderr.print(f"{label} ...", markup=False, soft_wrap=True)
        yield from _progress_lines(items, label, total if total is not None else length_hint(items))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
        yield from bar.track(items, total=total, description=label)


def _progress_lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    lines = ProgressLines(shown=total > 1)
    for done, item in enumerate(items):
        if done:
            lines.tell(done, total, f"{label}: {{}} of {{}}")
        yield item


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, so that what the block has started ends with it."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def without_none(**values: Any) -> dict[str, Any]:
    """Drop the options that were not given."""
    return {name: value for name, value in values.items() if value is not None}
