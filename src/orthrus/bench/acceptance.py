"""Acceptance of two-pass cycles by chains and trees of drafts, with and without the draft head and lookup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from orthrus.api import Model, Options
from orthrus.bench import measure, repetition, replay
from orthrus.bench.bootstrap import Counts, Interval, paired_difference, ratio
from orthrus.bench.measure import Acceptance
from orthrus.bench.replay import Way
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.statistics import Statistics


@dataclass(frozen=True)
class Setting:
    """What a cycle verifies: a tree of `nodes` nodes, or a chain if that is 0; `head`: chosen by the draft head;
    `lookup`: by what followed the drafts in the text before."""

    nodes: int
    head: bool
    lookup: bool
    name: str

    @property
    def way(self) -> Way:
        """How the drafts are chosen."""
        return Way(chain=self.nodes == 0, head=self.head, lookup=self.lookup)


@dataclass(frozen=True)
class Run:
    """What the cycles of one answer did in one setting; loops: whether the answer repeats itself."""

    prompt: TaskPrompt
    setting: Setting
    statistics: Statistics
    loops: bool


@dataclass(frozen=True)
class PairedAcceptance:
    """A of two diffusion views over the same answers of one part, and by how much the second exceeds the first.

    interval: a 95 % bootstrap interval of the difference, over prompts drawn for both views at once.
    """

    part: str
    drafts: str
    prompts: int
    first: float
    second: float
    difference: float
    interval: Interval

    @property
    def conclusion(self) -> str:
        """Which view is better beyond the noise of these prompts: `first`, `second` or `neither`."""
        low, high = self.interval
        return "second" if low > 0 else "first" if high < 0 else "neither"


def settings(model: Model, sizes: Iterable[int], options: Options, *, replays: bool = True) -> list[Setting]:
    """Chains (0) and trees of these sizes; where they are replayed, also without lookup; for a model with a draft head,
    also without either. Raises ValueError where a size cannot be decoded."""
    with_head = model.decoder.draft_head is not None
    variants = [(with_head, True, "")]
    if replays:
        variants.append((with_head, False, ", no lookup"))
    if with_head:
        variants.append((False, not replays, ", no head or lookup" if replays else ", no head"))
    chosen = []
    for nodes in sizes:
        model.decoding_config({**options, "tree_nodes": nodes})
        name = f"tree of {nodes}" if nodes else "chain"
        chosen += [Setting(nodes, head, lookup, name + suffix) for head, lookup, suffix in variants]
    return chosen


def replayed(model: Model, prompts: list[TaskPrompt], options: Options, chosen: Sequence[Setting]) -> Iterator[Run]:
    """Decode every prompt once and replay it with each setting: exact under the rule `exact`, and many times faster."""
    for prompt, text in replay.decode(model, prompts, options):
        yield from _replays(prompt, text, options, chosen)


def replayed_by_both(
    models: Sequence[Model], prompts: list[TaskPrompt], options: Options, chosen: Sequence[Setting]
) -> Iterator[tuple[Run, Run]]:
    """Replay every prompt with two diffusion views of one backbone. Their answers are the same, and decoded once."""
    first, second = models
    for prompt, text in replay.decode(first, prompts, options):
        texts = (text, replace(text, model=second))
        yield from zip(*(_replays(prompt, each, options, chosen) for each in texts), strict=True)


def decoded(model: Model, prompts: list[TaskPrompt], options: Options, chosen: Sequence[Setting]) -> Iterator[Run]:
    """Decode every prompt with each setting."""
    for setting in chosen:
        variant = copy(model)
        variant.runner = model.runner if setting.head else replay.without_head(model.runner)
        for prompt, done in measure.decode(variant, prompts, {**options, "tree_nodes": setting.nodes}):
            yield Run(prompt, setting, done.statistics, repetition.loops(done.tokens))


def by_part(task: str, runs: Iterable[Run], chosen: Sequence[Setting]) -> list[Acceptance]:
    """The figures of each part of a task and setting, then those of all its parts together."""
    return [
        measure.acceptance(part, (run.statistics for run in group), setting.name, (run.loops for run in group))
        for part, setting, group in _groups(task, list(runs), chosen)
    ]


def paired_by_part(task: str, pairs: Iterable[tuple[Run, Run]], chosen: Sequence[Setting]) -> list[PairedAcceptance]:
    """The differences in each part of a task and setting, then those in all its parts together."""
    firsts, seconds = zip(*pairs, strict=True)
    compared = []
    for (part, setting, first), (_, _, second) in zip(
        _groups(task, firsts, chosen), _groups(task, seconds, chosen), strict=True
    ):
        counts = _counts(first), _counts(second)
        of_first, of_second = (ratio(*each) for each in counts)
        difference, interval = paired_difference(*counts)
        compared.append(PairedAcceptance(part, setting.name, len(first), of_first, of_second, difference, interval))
    return compared


def _replays(prompt: TaskPrompt, text: replay.Text, options: Options, chosen: Sequence[Setting]) -> Iterator[Run]:
    diffusion, loops = text.model.decoder.diffusion, repetition.loops(text.tokens)
    assert diffusion is not None
    width = options.get("width") or diffusion.block_size
    ways, most = sorted({setting.way for setting in chosen}), max(setting.nodes for setting in chosen)
    drafts = replay.two_pass_drafts(text, ways, most, width)
    for setting in chosen:
        statistics = replay.two_pass(text, drafts[setting.way], setting.nodes or None, width)
        yield Run(prompt, setting, statistics, loops)


def _groups(task: str, runs: Sequence[Run], chosen: Sequence[Setting]) -> Iterator[tuple[str, Setting, list[Run]]]:
    """The runs of every part and setting, in order of parts; then those of all parts, where there are several."""
    parts = sorted({run.prompt.part for run in runs})
    for part in parts:
        for setting in chosen:
            yield part, setting, [run for run in runs if run.prompt.part == part and run.setting == setting]
    if len(parts) > 1:
        for setting in chosen:
            yield f"{task}, all", setting, [run for run in runs if run.setting == setting]


def _counts(runs: Sequence[Run]) -> tuple[Counts, Counts]:
    """Accepted drafts and cycles of every prompt."""
    return (
        np.array([sum(run.statistics.accepted) for run in runs], dtype=float),
        np.array([sum(run.statistics.cycles.values()) for run in runs], dtype=float),
    )
