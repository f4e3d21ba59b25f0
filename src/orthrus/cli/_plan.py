"""Print the planner's cost table, choices and predictions (`--explain-plan`, `doctor --calibrate`), and its warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from orthrus.decoding.cycle import Step
    from orthrus.decoding.planning.cost_model import CostModel
    from orthrus.decoding.statistics import Statistics

MIN_CYCLES = 32
"""With fewer cycles there is no warning of a collapse."""
MOSTLY = 0.6
"""The share of cycles from which on plain decoding is what a run shows."""


def print_costs(console: Console, costs: CostModel) -> None:
    """Print the cost table of this model on this device."""
    table = Table(title="milliseconds per pass (measured once and cached; `orthrus doctor --calibrate` measures again)")
    table.add_column("rows")
    for rows, _ in costs.rows:
        table.add_column(str(rows), justify="right")
    drafting = dict(costs.drafting)
    for name, seconds in (
        ("AR pass, short context", dict(costs.rows)),
        ("diffusion pass, with its overhead", drafting),
    ):
        table.add_row(name, *[f"{1e3 * seconds[n]:.1f}" if n in seconds else "-" for n, _ in costs.rows])
    console.print(table)
    console.print(
        f"blocks beside AR rows add {1e3 * costs.block_overhead:.2f} ms, and {1e3 * costs.block:.2f} ms each;"
        f" 1,000 tokens of context add {1e6 * costs.key:.2f} ms, plus {1e6 * costs.row_key:.2f} ms for each further row"
    )


def explain(console: Console, costs: CostModel, runs: list[tuple[Statistics, int]]) -> None:
    """Cost table, the passes that were run with their prices, and prediction against what happened.

    `runs`: statistics and number of prompt tokens of each prompt.
    """
    print_costs(console, costs)
    shapes: Counter[tuple[str, int, int, int]] = Counter()
    for statistics, _ in runs:
        shapes.update(statistics.shapes)
    generated, passes = sum(s.generated for s, _ in runs), sum(s.passes for s, _ in runs)
    context = sum(n + s.generated / 2 for s, n in runs) / len(runs)
    table = Table(title="cycles by shape")
    for column in ("cycle", "drafts verified", "blocks in AR pass", "rows per block", "count", "expected ms each"):
        table.add_column(column, justify="left" if column == "cycle" else "right")
    for shape, count in sorted(shapes.items(), key=lambda item: -item[1]):
        kind, drafts, blocks, width = shape
        rows = str(width) if blocks or kind == "two-pass" else "-"
        table.add_row(kind, str(drafts), str(blocks), rows, str(count), f"{1e3 * costs.cycle(shape, context):.1f}")
    console.print(table)
    expected = sum(costs.total(s.shapes, n + s.generated / 2) for s, n in runs)
    plain, seconds = generated * costs.ar(1, 1, context), sum(s.seconds for s, _ in runs)
    console.print(
        f"{generated} tokens in {passes} passes. Expected from the cost table: {1e3 * expected:.0f} ms, against"
        f" {1e3 * plain:.0f} ms for plain decoding ({plain / expected if expected else 1:.2f} x)."
        f" Measured: {1e3 * seconds:.0f} ms, prefill included."
    )
    fallbacks = sum(s.cycles.get("ar", 0) for s, _ in runs)
    console.print(
        f"{fallbacks} of {sum(shapes.values())} cycles fell back to plain decoding: drafting was not expected to pay."
    )


def print_tree(console: Console, steps: Iterable[Step], decode: Callable[[Sequence[int]], str]) -> None:
    """Print the tree of drafts of the pass that accepted most, with the probability of each node to be accepted if its
    parent is. Accepted nodes are marked."""
    step = max(steps, key=lambda step: step.kept.accepted)
    drafts = step.plan.tree
    if not drafts.tokens:
        return
    accepted = f"{step.kept.accepted} of {len(drafts.tokens)} drafts accepted"
    branches = [Tree(Text(f"the pass that accepted most, {step.passes} of this answer: {accepted}"))]
    for node, (token, parent) in enumerate(zip(drafts.tokens, drafts.parents, strict=True)):
        mark, style = ("✓ ", "green") if node in step.kept.path else ("", "")
        shown = Text(f"{mark}{decode([token])!r} {drafts.confidence[node]:.0%}", style)
        branches.append(branches[parent + 1].add(shown))
    console.print(branches[0])


def mostly_plain(runs: list[Statistics]) -> bool:
    """Whether most cycles fell back to plain decoding."""
    cycles, plain = _cycles(runs)
    return cycles > 0 and plain >= MOSTLY * cycles


def _cycles(runs: list[Statistics]) -> tuple[int, int]:
    """All cycles, and those of plain decoding."""
    return sum(sum(s.cycles.values()) for s in runs), sum(s.cycles.get("ar", 0) for s in runs)


def warn_of_collapse(console: Console, runs: list[Statistics]) -> None:
    """Warn if most cycles fell back to plain decoding: the view does not fit the text."""
    cycles, plain = _cycles(runs)
    if cycles < MIN_CYCLES or not mostly_plain(runs):
        return
    drafted = sum(sum(s.drafted[:1]) for s in runs)
    if not drafted:
        note = (
            "note: drafting hardly pays on this text at what passes cost here, so no draft was tried: `--explain-plan`"
            " shows the costs"
        )
    else:
        right = sum(sum(s.accepted[:1]) for s in runs) / drafted
        note = (
            f"note: drafting hardly pays on this text (the first draft was right {right:.0%} of the time), so {plain}"
            f" of {cycles} cycles used plain decoding. A view trained on such text would help: `orthrus train`"
        )
    console.print(note, style="yellow", soft_wrap=not console.is_terminal)
