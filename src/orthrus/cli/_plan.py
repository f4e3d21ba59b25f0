"""What the planner knew, chose and expected, for `--explain-plan` and `doctor --calibrate`; its warning."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from orthrus.decoding.planning.cost_model import CostModel
    from orthrus.decoding.statistics import Statistics

FEW = 32
"""Cycles below which a collapse is not worth a word."""


def print_costs(console: Console, costs: CostModel) -> None:
    """The cost table of this model on this device."""
    table = Table(title="milliseconds of a pass (measured once, kept; `orthrus doctor --calibrate` measures again)")
    table.add_column("rows")
    for rows, _ in costs.rows:
        table.add_column(str(rows), justify="right")
    drafting = dict(costs.drafting)
    for name, seconds in (
        ("AR pass, short context", dict(costs.rows)),
        ("diffusion pass, with work around it", drafting),
    ):
        table.add_row(name, *[f"{1e3 * seconds[n]:.1f}" if n in seconds else "-" for n, _ in costs.rows])
    console.print(table)
    console.print(
        f"blocks beside AR rows add {1e3 * costs.block_overhead:.2f} ms, and {1e3 * costs.block:.2f} ms each;"
        f" 1,000 tokens of context {1e6 * costs.key:.2f} ms, and {1e6 * costs.row_key:.2f} ms for every row more"
    )


def explain(console: Console, costs: CostModel, runs: list[tuple[Statistics, int]]) -> None:
    """Cost table, the passes that were run with their prices, and prediction against what happened.

    `runs`: statistics, and tokens of the prompt.
    """
    print_costs(console, costs)
    shapes: Counter[tuple[str, int, int, int]] = Counter()
    for statistics, _ in runs:
        shapes.update(statistics.shapes)
    generated, passes = sum(s.generated for s, _ in runs), sum(s.passes for s, _ in runs)
    context = sum(n + s.generated / 2 for s, n in runs) / len(runs)
    table = Table(title="cycles by what they verified and drafted")
    for column in ("cycle", "drafts verified", "blocks beside", "rows of a block", "times", "expected ms each"):
        table.add_column(column, justify="left" if column == "cycle" else "right")
    for shape, count in sorted(shapes.items(), key=lambda item: -item[1]):
        kind, drafts, blocks, width = shape
        rows = str(width) if blocks or kind == "two-pass" else "-"
        table.add_row(kind, str(drafts), str(blocks), rows, str(count), f"{1e3 * costs.cycle(shape, context):.1f}")
    console.print(table)
    expected = sum(costs.total(s.shapes, n + s.generated / 2) for s, n in runs)
    plain, seconds = generated * costs.ar(1, 1, context), sum(s.seconds for s, _ in runs)
    console.print(
        f"{generated} tokens in {passes} passes. By the table: {1e3 * expected:.0f} ms, against {1e3 * plain:.0f} ms"
        f" for plain decoding ({plain / expected if expected else 1:.2f} x)."
        f" Measured: {1e3 * seconds:.0f} ms, prefill included."
    )
    fallen = sum(s.cycles.get("ar", 0) for s, _ in runs)
    console.print(
        f"{fallen} of {sum(shapes.values())} cycles fell back to plain decoding: drafts were not worth their rows."
    )


def warn_of_collapse(console: Console, runs: list[Statistics]) -> None:
    """Say so where the planner mostly decoded plainly: then the view does not fit the text."""
    cycles, plain = sum(sum(s.cycles.values()) for s in runs), sum(s.cycles.get("ar", 0) for s in runs)
    if cycles < FEW or plain < 0.6 * cycles:
        return
    drafted = sum(sum(s.drafted[:1]) for s in runs)
    right = sum(sum(s.accepted[:1]) for s in runs) / drafted if drafted else 0.0
    console.print(
        f"note: drafting hardly pays on this text (the first draft was right {right:.0%} of the time), so {plain} of"
        f" {cycles} cycles decoded plainly. A view trained on such text would help: `orthrus train`",
        style="yellow",
    )
