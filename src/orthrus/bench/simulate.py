"""A performance model of a large GPU, not a measurement: tokens per second by acceptance, block size and batch.

The time of a pass is a roofline: the maximum of the time to read its weights and the time of its GEMMs, plus the time
to read the KV cache once (AR rows and blocks share one masked attention call). Every draft of a block is accepted with
the same probability, chosen so that a two-pass cycle with the published block size of 32 accepts A drafts. In a block
that did not predict the bonus token, that probability is multiplied by `miss_factor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orthrus.bench.shapes import QWEN3
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.policy import MAX_BLOCKS, Yield, solve

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
    included. one_pass: by the most blocks beside the AR rows; planned: the optimum."""

    acceptance: float
    width: int
    batch: int
    plain: float
    two_pass: float
    one_pass: dict[str, float]
    planned: float


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
    shape: str, device: Device, acceptances: list[float], widths: list[int], batches: list[int], miss_factor: float,
    context: int,
) -> list[Point]:  # fmt: skip
    """Simulate all settings. `miss_factor`: see the top of this file."""
    costs, points = costs_of(shape, device), []
    for acceptance in acceptances:
        probability = probability_of(acceptance)
        for width in widths:
            for batch in batches:
                fresh, hit = _chain(probability, width), _chain(probability, width - 1)
                beside = hit.towards(_chain(miss_factor * probability, width - 1), 1 - probability)

                def rate(blocks: int, *, refreshes: bool, drafts: tuple[Yield, Yield] = (fresh, beside)) -> float:
                    policy = solve(*drafts, width, costs, batch, context, blocks, refreshes=refreshes)  # noqa: B023
                    return policy.rate

                one_pass = {f"{n}": rate(n, refreshes=False) for n in (1, 2, MAX_BLOCKS)}
                plain = batch / costs.ar(batch, 1, context)
                two_pass, planned = rate(0, refreshes=True), rate(MAX_BLOCKS, refreshes=True)
                points.append(Point(acceptance, width, batch, plain, two_pass, one_pass, planned))
    return points


def _chain(probability: float, drafts: int) -> Yield:
    """The yield of a chain of drafts, each of which is accepted with this probability if those before it are."""
    return Yield.of(list(range(-1, drafts - 1)), [probability ** (node + 1) for node in range(drafts)])


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
