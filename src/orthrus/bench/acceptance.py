"""Acceptance of two-pass cycles by chains and trees of drafts, with and without the draft head and lookup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

from orthrus.api import Model, Options
from orthrus.bench import measure, replay
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


Run = tuple[TaskPrompt, Setting, Statistics]
"""A prompt with a setting, and what its cycles did."""


def settings(model: Model, sizes: Iterable[int], options: Options, *, replays: bool = True) -> list[Setting]:
    """Chains (0) and trees of these sizes; where they are replayed, also without lookup; for a model with a draft head,
    also without either. Raises ValueError where a size cannot be decoded."""
    with_head = model.decoder.draft_head is not None
    variants = [(with_head, True, "")]
    if replays:
        variants.append((with_head, False, ", no lookup"))
    if with_head:
        variants.append((False, not replays, ", no head or lookup" if replays else ", no head"))
    found = []
    for nodes in sizes:
        model.decoding_config({**options, "tree_nodes": nodes})
        name = f"tree of {nodes}" if nodes else "chain"
        found += [Setting(nodes, head, lookup, name + suffix) for head, lookup, suffix in variants]
    return found


def replayed(model: Model, prompts: list[TaskPrompt], options: Options, chosen: Sequence[Setting]) -> Iterator[Run]:
    """Decode every prompt once and replay it with each setting: exact under the rule `exact`, and many times faster."""
    assert model.decoder.diffusion is not None
    width = options.get("width") or model.decoder.diffusion.block_size
    ways, most = sorted({setting.way for setting in chosen}), max(setting.nodes for setting in chosen)
    for prompt, text in replay.decode(model, prompts, options):
        drafts = replay.two_pass_drafts(text, ways, most, width)
        for setting in chosen:
            yield prompt, setting, replay.two_pass(text, drafts[setting.way], setting.nodes or None, width)


def decoded(model: Model, prompts: list[TaskPrompt], options: Options, chosen: Sequence[Setting]) -> Iterator[Run]:
    """Decode every prompt with each setting."""
    for setting in chosen:
        own = copy(model)
        own.runner = model.runner if setting.head else replay.without_head(model.runner)
        for prompt, statistics in measure.decode(own, prompts, {**options, "tree_nodes": setting.nodes}):
            yield prompt, setting, statistics


def by_part(task: str, runs: Iterable[Run], chosen: Sequence[Setting]) -> list[Acceptance]:
    """The figures of each part of a task and setting, then those of all its parts together."""
    found: dict[str, dict[str, list[Statistics]]] = {}
    for prompt, setting, statistics in runs:
        found.setdefault(prompt.part, {}).setdefault(setting.name, []).append(statistics)
    names = [setting.name for setting in chosen]
    rows = [measure.acceptance(part, own[name], name) for part, own in sorted(found.items()) for name in names]
    if len(found) > 1:
        every = {name: [one for own in found.values() for one in own[name]] for name in names}
        rows += [measure.acceptance(f"{task}, all", every[name], name) for name in names]
    return rows
