"""Measurements: acceptance over a task, and the cost of exactness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from orthrus.api import Model, Options
from orthrus.backends.interface import ExecutableLinear
from orthrus.backends.torch import attend_flash, attend_flash_ungrouped
from orthrus.bench import exactness
from orthrus.bench.bootstrap import pooled
from orthrus.bench.tasks import TaskPrompt
from orthrus.checkpoint.hub import Checkpoint
from orthrus.config import DecodingConfig
from orthrus.decoding.sequence import Request, Sequence
from orthrus.decoding.statistics import Statistics
from orthrus.model.decoder import Decoder
from orthrus.runner.prepare import inference_copy
from orthrus.runner.runner import Runner


@dataclass(frozen=True)
class Acceptance:
    """Acceptance over the prompts of one part, pooled: all accepted drafts divided by all cycles. drafts: what a cycle
    verifies, a chain or a tree. loops: answers that repeat themselves (see `repetition`); without_loops: A and its
    interval over the other answers, None where every answer loops.

    Intervals are 95 % bootstrap intervals over prompts.
    """

    part: str
    prompts: int
    generated: int
    acceptance_length: float
    interval: tuple[float, float]
    tpf: float
    tpf_interval: tuple[float, float]
    rows_per_pass: float
    by_offset: list[float]
    drafts: str
    loops: int = 0
    without_loops: tuple[float, tuple[float, float]] | None = None


def decode(model: Model, prompts: list[TaskPrompt], options: Options) -> Iterator[tuple[TaskPrompt, Sequence]]:
    """Decode a task's prompts, yielding each prompt with its sequence as it finishes."""
    requests = exactness.requests(model, [p.prompt for p in prompts], options)
    config = model.decoding_config(options)
    for step in model.run(requests, config):
        if step.sequence.finish_reason is not None:
            yield prompts[step.sequence.index], step.sequence


def decode_alone(model: Model, config: DecodingConfig, request: Request) -> tuple[list[int], float]:
    """The tokens of one request, and the seconds they took, prefill included."""
    (done,) = [s.sequence for s in model.run([request], config) if s.sequence.finish_reason is not None]
    return done.tokens, done.statistics.seconds


def turns(parts: list[str], settings: int) -> list[int]:
    """For each prompt, which of the settings is first. They take turns within each part."""
    first = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    counts: dict[str, int] = {}
    found = []
    for part in parts:
        counts[part] = counts.get(part, -1) + 1
        found.append((counts[part] + first[part]) % settings)
    return found


def held_out_acceptance(
    checkpoint: Checkpoint, prompts: list[list[int]], nodes: int, max_new_tokens: int = 128
) -> Acceptance:
    """Greedy acceptance of trees of so many drafts (0: of chains) from a view in training, on prompts given as
    tokens."""
    model = Model(checkpoint, inference_copy(checkpoint.decoder))
    asked = [TaskPrompt(str(n), "held out", prompt) for n, prompt in enumerate(prompts)]
    options: Options = {
        "max_new_tokens": max_new_tokens, "cycle": "two-pass", "tree_nodes": nodes, "batch_size": 8, "seed": 0
    }  # fmt: skip
    return acceptance("held out", [done.statistics for _, done in decode(model, asked, options)])


def acceptance(
    part: str, runs: Iterable[Statistics], drafts: str = "chain", looping: Iterable[bool] = ()
) -> Acceptance:
    """Summarise the statistics of the prompts of one part. looping: for each, whether its answer loops."""
    statistics = list(runs)
    varied = ~np.array(list(looping) or [False] * len(statistics))
    accepted = np.array([sum(s.accepted) for s in statistics], dtype=float)
    cycles = np.array([sum(s.cycles.values()) for s in statistics], dtype=float)
    generated = np.array([s.generated for s in statistics], dtype=float)
    passes = np.array([s.passes for s in statistics], dtype=float)
    offsets = max(len(s.drafted) for s in statistics)
    drafted, kept = np.zeros(offsets), np.zeros(offsets)
    for s in statistics:
        drafted[: len(s.drafted)] += s.drafted
        kept[: len(s.accepted)] += s.accepted
    return Acceptance(
        part,
        len(statistics),
        int(generated.sum()),
        *pooled(accepted, cycles),
        *pooled(generated, passes),
        sum(s.rows for s in statistics) / max(1, sum(s.passes - 1 for s in statistics)),
        (kept / np.maximum(drafted, 1)).tolist(),
        drafts,
        int((~varied).sum()),
        pooled(accepted[varied], cycles[varied]) if varied.any() else None,
    )


def exactness_cost(model: Model, context: int, n: int = 150) -> dict[str, Any]:
    """Milliseconds of a one-row pass with and without the exact row layout, interleaved.

    Without it, no rows and no keys are padded, and attention gets its single row ungrouped.
    """
    runners = {True: model.runner, False: _unpadded(model.runner)}
    tables = model.runner.new_tables(1, context + 1)
    ids = torch.randint(0, model.runner.config.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
    model.runner.ar([ids.tolist()], tables, logit_rows=[0])
    tables[0].commit(context)
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * n + 8):
        exact = turn % 4 in (0, 3)  # each is first in every other pair
        start = perf_counter()
        runners[exact].ar([[int(ids[0])]], tables)
        synchronise(model.decoder.device)
        if turn >= 8:
            times[exact].append(1e3 * (perf_counter() - start))
    ratios = np.array(times[True]) / np.array(times[False])
    low, high = np.quantile(ratios, (0.25, 0.75))
    return {
        "context": context,
        "n": n,
        "exact_ms": float(np.median(times[True])),
        "plain_ms": float(np.median(times[False])),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": (float(low), float(high)),
    }


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what was asked of it, so that a clock measures its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _unpadded(runner: Runner) -> Runner:
    """A runner of the same weights and kernels that pads no rows, rounds no keys, and gives attention its single row as
    it is."""
    attention = replace(runner.attention, key_multiple=1, rule=replace(runner.attention.rule, multiple=1))
    if attention.attend is attend_flash:
        attention = replace(attention, attend=attend_flash_ungrouped)
    decoder: Decoder = _copy_of_modules(runner.decoder)
    for linear in decoder.linears().values():
        if isinstance(linear, ExecutableLinear):
            linear.rule = replace(linear.rule, multiple=1)
    return Runner(decoder, runner.kernels, attention, runner.draft_weights)


def _copy_of_modules(module: Any) -> Any:
    """The same module tree with modules of its own, which share all weights."""
    other = copy(module)
    other._modules = {name: _copy_of_modules(child) for name, child in module._modules.items()}
    return other
