"""Speed of the cycles at batch 1, with settings interleaved per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from orthrus.api import Model, Options
from orthrus.bench import exactness, measure
from orthrus.bench.report import TASKS
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.sequence import Request
from orthrus.decoding.statistics import Statistics

UNEXPLAINED = 1.5
"""The factor between measured and expected speed of plain decoding from which one of them is doubted. The work around
passes, which the expectation leaves out, takes a tenth or two with a small model."""
SETTINGS = ("ar", "two-pass", "one-pass", "auto")
"""The settings that are measured by default: of a checkpoint without a diffusion view the first alone."""


@dataclass(frozen=True)
class Speed:
    """Results of one setting over all prompts of a part.

    speed: median tokens per second, prefill included; over_plain: median of the ratio to the first setting, prompt by
    prompt; expected: tokens per second after the first by the cost table, 0 where there are none; first_token: median
    seconds to the first token; between: median and 99th percentile of the seconds between cycles (one or several tokens
    each); peak: maximum bytes of the process (or of GPU memory), weights included, 0 if the system does not report it.
    """

    part: str
    setting: str
    prompts: int
    generated: int
    acceptance_length: float
    tokens_per_cycle: float
    passes: int
    tpf: float
    rows_per_pass: float
    speed: float
    quartiles: tuple[float, float]
    over_plain: float
    over_plain_quartiles: tuple[float, float]
    expected: float
    identical: int
    first_token: float
    between: tuple[float, float]
    peak: int


@dataclass(frozen=True)
class Run:
    """One prompt with one setting: statistics, tokens, end times of prefill and every cycle in seconds, peak bytes."""

    statistics: Statistics
    tokens: list[int]
    ends: list[float]
    peak: int


def options_of(setting: str) -> Options:
    """Parse `cycle`, which may be followed by `:candidates`, `/width` and `+nodes` in this order, into options."""
    cycle, _, nodes = setting.partition("+")
    cycle, _, width = cycle.partition("/")
    cycle, _, candidates = cycle.partition(":")
    numbers = {"width": width, "candidates": candidates, "tree_nodes": nodes}
    if not all(number.isdecimal() for number in numbers.values() if number):
        raise ValueError(
            f"{setting!r} is no setting: give CYCLE, CYCLE/WIDTH, CYCLE+NODES or one-pass:CANDIDATES/WIDTH+NODES, such"
            " as one-pass:2/6+12"
        )
    options: Options = {"cycle": cycle}
    for name, number in numbers.items():
        if number:
            options[name] = int(number)  # type: ignore[literal-required]
    return options


def measure_settings(
    model: Model,
    task: str,
    prompts: list[TaskPrompt],
    options: Options,
    settings: list[str],
    track: Callable[[Iterable[int]], Iterable[int]],
) -> list[Speed]:
    """Decode every prompt with every setting. The order of the settings rotates from prompt to prompt of a part.

    Returns the results of each part, then those of all parts of the task together.
    """
    if len(settings) != len(set(settings)):
        raise ValueError(f"each setting is measured once, and one is repeated: {', '.join(settings)}")
    requests = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
    runs: dict[str, list[Run]] = {setting: [] for setting in settings}
    for setting in settings:
        _decode(model, requests[0], options | options_of(setting))  # warm-up
    turns = measure.turns([prompt.part for prompt in prompts], len(settings))
    for number in track(range(len(prompts))):
        turn = turns[number]
        for setting in settings[turn:] + settings[:turn]:
            runs[setting].append(_decode(model, requests[number], options | options_of(setting)))
    parts = sorted({prompt.part for prompt in prompts})
    groups = {part: [n for n, prompt in enumerate(prompts) if prompt.part == part] for part in parts}
    if len(parts) > 1:
        groups[f"{task}, all"] = list(range(len(prompts)))
    lengths = [len(request.prompt) for request in requests]
    return [
        _summary(model, (part, setting), [runs[setting][n] for n in chosen], [runs[settings[0]][n] for n in chosen],
                 [lengths[n] for n in chosen])
        for part, chosen in groups.items() for setting in settings
    ]  # fmt: skip


def doubts(speeds: list[Speed]) -> list[str]:
    """Where plain decoding took a time that the cost table does not explain: what was measured, and what to do."""
    return [
        f"{speed.part}: plain decoding ran at {_after_prefill(speed):.1f} tokens/s after the prefill, where the cost"
        f" table expects {speed.expected:.1f}. Other programs disturbed one of them, or the machine has changed its"
        " pace since: repeat it on a quiet machine"
        for speed in speeds
        if speed.setting == "ar"
        and speed.expected
        and not 1 / UNEXPLAINED <= _after_prefill(speed) / speed.expected <= UNEXPLAINED
    ]


def _after_prefill(speed: Speed) -> float:
    """Tokens per second after the first one, as `expected` counts them; equal to it where there is no second token."""
    tokens = speed.generated / speed.prompts
    seconds = tokens / speed.speed - speed.first_token
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else speed.expected


def _decode(model: Model, request: Request, options: Options) -> Run:
    _reset_peak(model.decoder.device)
    start = perf_counter()
    steps = [(step.sequence, perf_counter() - start) for step in model.run([request], model.decoding_config(options))]
    done = steps[-1][0]
    return Run(done.statistics, done.tokens, [end for _, end in steps], _peak(model.decoder.device))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def _summary(
    model: Model,
    name: tuple[str, str],
    runs: list[Run],
    base: list[Run],
    lengths: list[int],
) -> Speed:
    statistics = [run.statistics for run in runs]
    pooled = measure.acceptance(name[0], statistics)
    speeds = np.array([s.generated / s.seconds for s in statistics])
    plain = np.array([run.statistics.generated / run.statistics.seconds for run in base])
    gaps = np.concatenate([np.diff(run.ends) for run in runs])
    seconds = 0.0
    if model.decoder.diffusion is not None:  # else there is nothing to plan, and no cost table
        costs = model.costs()
        seconds = sum(costs.total(s.shapes, n + s.generated / 2) for s, n in zip(statistics, lengths, strict=True))
    return Speed(
        *name, len(statistics), pooled.generated, pooled.acceptance_length, pooled.acceptance_length + 1,
        sum(s.passes for s in statistics), pooled.tpf, pooled.rows_per_pass,
        float(np.median(speeds)), _quartiles(speeds), float(np.median(speeds / plain)), _quartiles(speeds / plain),
        sum(s.generated - 1 for s in statistics) / seconds if seconds else 0.0,
        sum(run.tokens == other.tokens for run, other in zip(runs, base, strict=True)),
        float(np.median([run.ends[0] for run in runs])), _quantiles(gaps, (0.5, 0.99)),
        max(run.peak for run in runs),
    )  # fmt: skip


def _quartiles(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    return _quantiles(values, (0.25, 0.75))


def _quantiles(values: np.ndarray[Any, Any], shares: tuple[float, float]) -> tuple[float, float]:
    low, high = np.quantile(values, shares) if len(values) else (0.0, 0.0)
    return float(low), float(high)


def plot(speeds: list[Speed], path: Path) -> None:
    """Plot expected and measured tokens per second of every setting, one panel per part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {part: name for name, parts in TASKS.items() for part in parts}
    parts = list(dict.fromkeys(speed.part for speed in speeds))
    figure, axes = pyplot.subplots(1, len(parts), figsize=(max(5.0, 4.2 * len(parts)), 4), squeeze=False, sharey=True)
    for axis, part in zip(axes[0], parts, strict=True):
        chosen = [speed for speed in speeds if speed.part == part]
        x = np.arange(len(chosen))
        measured = [speed.speed for speed in chosen]
        spread = np.abs(np.array([speed.quartiles for speed in chosen]).T - measured)
        axis.bar(
            x - 0.2, [speed.expected for speed in chosen], 0.4, label="expected by the cost table", color="#b8c4d6"
        )
        axis.bar(x + 0.2, measured, 0.4, yerr=spread, capsize=3, label="measured: median, quartiles", color="#2f6690")
        axis.set_xticks(x, [speed.setting for speed in chosen], rotation=40, ha="right")
        axis.set_title(f"{names.get(part, part)} ({chosen[0].prompts} prompts)")
    axes[0][0].set_ylabel("tokens per second")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncols=2, fontsize="small")
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def as_records(speeds: list[Speed]) -> list[dict[str, Any]]:
    """The results as JSON objects."""
    return [asdict(speed) for speed in speeds]
