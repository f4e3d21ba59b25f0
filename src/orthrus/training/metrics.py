"""Metrics of a training run: JSON lines, a plot of the curves, TensorBoard."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from orthrus.file_cache import save_bytes, write_atomically

LINES, CURVES = "metrics.jsonl", "curves.png"
DRAW_SECONDS = 30.0
"""Least time between two plots of a run: one takes half a second, as long as several steps of a small model."""


class Metrics:
    """One JSON object per step in `metrics.jsonl`; a plot and TensorBoard if their libraries are installed."""

    def __init__(self, directory: Path, *, writes: bool = True) -> None:
        self.directory, self._writes = directory, writes
        self._board: Any = None
        self._drawn = perf_counter()

    def truncate(self, step: int) -> None:
        """Remove the records after `step`, at which a run is resumed."""
        if not self._writes:
            return
        kept = [record for record in read(self.directory) if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.directory, {LINES: lambda path: save_bytes(path, lines.encode())})
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(self.directory / "tensorboard", purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write the record of a step; after one with a validation the plot is drawn too if the last is old.

        A run that is killed may leave records of steps that are not in its state: `truncate` removes them.
        """
        if self._writes:
            with (self.directory / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name in ("loss", "head_loss", "rate", "gradient_norm"):
                if record[name] is not None:
                    self._board.add_scalar(name, record[name], record["step"])
            for offset, share in enumerate(record["agreement"], 1):
                self._board.add_scalar(f"agreement/offset {offset}", share, record["step"])
            if record["validation"]:
                self._board.add_scalar("acceptance length", record["validation"]["acceptance_length"], record["step"])
        if record["validation"]:
            self.flush()
            if perf_counter() - self._drawn > DRAW_SECONDS:
                self.draw()

    def flush(self) -> None:
        """Write what TensorBoard still holds."""
        if self._board is not None:
            self._board.flush()

    def draw(self) -> None:
        """Draw `curves.png`."""
        if self._writes and find_spec("matplotlib"):
            draw(read(self.directory), self.directory / CURVES)
        self._drawn = perf_counter()

    def close(self) -> None:
        """Draw the plot, and close TensorBoard."""
        self.flush()
        self.draw()
        if self._board is not None:
            self._board.close()


def read(directory: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; incomplete lines, left by a killed process, are skipped."""
    path = directory / LINES
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def draw(steps: list[dict[str, Any]], path: Path) -> None:
    """Plot the loss, the agreement per offset, and A of actual decoding against supervised rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not steps:
        return
    figure = Figure((13, 4))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.13, top=0.92, wspace=0.16)  # a layout costs half the time
    loss, agreement, acceptance = figure.subplots(1, 3)
    rows = [record["rows_total"] / 1e3 for record in steps]
    loss.plot(rows, _smooth([record["loss"] for record in steps]))
    loss.set(title="loss per supervised row", yscale="log")
    for offset in range(len(steps[0]["agreement"])):
        values = _smooth([record["agreement"][offset] for record in steps])
        agreement.plot(rows, values, color=f"C{offset % 10}", label=f"{offset + 1}")
    agreement.set(title="agreement with the AR view, by offset", ylim=(0, 1))
    agreement.legend(fontsize="x-small", ncols=2)
    validated = [record for record in steps if record["validation"]]
    acceptance.plot(
        [record["rows_total"] / 1e3 for record in validated],
        [record["validation"]["acceptance_length"] for record in validated],
        marker="o",
    )
    acceptance.set(title="A on held-out prompts, two-pass", ylim=(0, None))
    for axes in (loss, agreement, acceptance):
        axes.set_xlabel("supervised rows (thousands)")
        axes.grid(alpha=0.3)
    write_atomically(path.parent, {path.name: lambda staged: figure.savefig(staged, format="png", dpi=110)})


def _smooth(values: list[float], keep: float = 0.98) -> list[float]:
    """An exponential moving average with bias correction."""
    averages, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(mean / weight)
    return averages
