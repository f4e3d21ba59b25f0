"""A performance model of a large GPU, not a measurement: tokens per second by acceptance, block size and batch.

The time of a pass is a roofline: the maximum of the time to read its weights and the time of its GEMMs, plus the time
to read the KV cache once (AR rows and blocks share one masked attention call). Drafts are trees. The first candidate of
every row of a block is right with the same probability, chosen so that a two-pass cycle that verifies a chain of the
published block size of 32 accepts A drafts; the others are right as often as `RANKS` says. In a block that did not
predict the bonus token, these probabilities are multiplied by `miss_factor`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path

from orthrus.bench.shapes import QWEN3
from orthrus.bench.simulated_planner import Drafts, tokens_per_second
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.planner import WIDTHS
from orthrus.decoding.planning.policy import MAX_BLOCKS, NODES, Yield, solve
from orthrus.drafters.tree import DraftTree

ROWS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
BLOCK = 32


@dataclass(frozen=True)
class Device:
    """Achievable bytes and FLOPs per second of a device."""

    name: str = "H100-class (modelled)"
    bytes_per_second: float = 0.8 * 3.35e12
    flops_per_second: float = 0.6 * 989e12


@dataclass(frozen=True)
class Point:
    """Tokens per second of the whole batch at one setting, each with the best number of verified drafts, plain passes
    included. one_pass: by the most blocks beside the AR rows; planned: the optimum; planner: what the planner reaches,
    which has to learn what drafts are worth; regret: how far that is below the optimum over all widths up to this one,
    as a fraction. Both are None where they were not asked for."""

    acceptance: float
    width: int
    batch: int
    plain: float
    two_pass: float
    one_pass: dict[str, float]
    planned: float
    planner: float | None = None
    regret: float | None = None


def costs_of(shape: str, device: Device) -> CostModel:
    """The cost table of a Qwen3 shape in bf16. Raises ValueError for an unknown shape."""
    if shape not in QWEN3:
        raise ValueError(f"there is no shape {shape!r}; shapes: {', '.join(QWEN3)}")
    hidden, inner, layers, heads, *_ = QWEN3[shape]
    attention = layers * hidden * 128 * (2 * heads + 2 * 8)
    weights = attention + layers * 3 * hidden * inner + 151936 * hidden
    rows = [(n, max(2 * weights / device.bytes_per_second, 2 * weights * n / device.flops_per_second)) for n in ROWS]
    kv_bytes = 2 * 2 * layers * 8 * 128
    beside, key = 2 * attention / device.bytes_per_second, kv_bytes / device.bytes_per_second
    return CostModel(tuple(rows), tuple(rows), beside, 0.0, key, 0.0)


def probability_of(acceptance: float) -> float:
    """The probability per draft at which a block of 32 has `acceptance` accepted drafts on average."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**n for n in range(1, BLOCK + 1)) < acceptance else (low, middle)
    return low


def simulate(
    costs: CostModel,
    acceptances: list[float],
    widths: list[int],
    batches: list[int],
    miss_factor: float,
    context: int,
    *,
    planner_tokens: int = 0,
) -> list[Point]:
    """Simulate all settings. miss_factor: see the top of this file. planner_tokens: the tokens of every sequence that
    the planner decodes; 0 leaves it out."""
    points = []
    for acceptance, width, batch in product(acceptances, widths, batches):
        probability = probability_of(acceptance)

        def rate(
            rows: int, blocks: int = MAX_BLOCKS, *, refreshes: bool = True, p: float = probability, B: int = batch
        ) -> float:
            own = yields(Drafts([p] * rows, miss_factor, max(NODES)))
            return solve(*own, rows, costs, B, context, blocks, refreshes=refreshes).rate

        one_pass = {f"{n}": rate(width, n, refreshes=False) for n in (1, 2, MAX_BLOCKS)}
        point = Point(
            acceptance, width, batch, batch / costs.ar(batch, 1, context), rate(width, 0), one_pass, rate(width)
        )
        if planner_tokens:
            drafts = Drafts([probability] * width, miss_factor, max(NODES))
            reached = tokens_per_second(costs, drafts, batch, context, planner_tokens)
            optimum = max(rate(rows) for rows in (*WIDTHS, width) if rows <= width)
            point = replace(point, planner=reached, regret=1 - reached / optimum)
        points.append(point)
    return points


def yields(drafts: Drafts) -> tuple[Yield, Yield]:
    """The average yields of a diffusion pass and of a block beside AR rows whose root ends the accepted path."""
    width = len(drafts.by_offset)
    fresh, beside = drafts.tree(0, width, count()), drafts.tree(1, width, count())
    missed = DraftTree.tree(beside.tokens, beside.parents, [drafts.miss_factor * own for own in beside.confidence])
    every, hit, miss = (Yield.of(tree.parents, tree.probabilities) for tree in (fresh, beside, missed))
    return every, hit.towards(miss, 1 - drafts.by_offset[0])


def plot(points: list[Point], title: str, path: Path) -> None:
    """Plot speed relative to plain decoding by acceptance: one panel per batch size, the best block size per line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted({point.batch for point in points})
    acceptances = sorted({point.acceptance for point in points})
    figure, axes = pyplot.subplots(1, len(batches), figsize=(3.6 * len(batches), 4), sharey=True, squeeze=False)
    names = list(points[0].one_pass)
    for axis, batch in zip(axes[0], batches, strict=True):
        here = [point for point in points if point.batch == batch]

        def best(of: str, acceptance: float, here: list[Point] = here) -> float:
            chosen = [point for point in here if point.acceptance == acceptance]
            rates = [p.two_pass if of == "two" else p.planned if of == "plan" else p.one_pass[of] for p in chosen]
            return max(rates) / chosen[0].plain

        axis.plot(acceptances, [best("two", a) for a in acceptances], "o-", color="#8d99ae", label="two-pass")
        for number, name in enumerate(names):
            shade = pyplot.get_cmap("Blues")(0.35 + 0.6 * number / len(names))
            label = f"one-pass, {name} block{'s' * (name != '1')}"
            axis.plot(acceptances, [best(name, a) for a in acceptances], ".-", color=shade, label=label)
        axis.plot(acceptances, [best("plan", a) for a in acceptances], "k--", label="planned")
        axis.axhline(1.0, color="#cccccc", linewidth=1)
        axis.set(title=f"batch {batch}", xlabel="A of two-pass, block of 32")
    axes[0][0].set_ylabel("speed relative to plain decoding")
    axes[0][-1].legend(fontsize="x-small")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
