"""What a decoding configuration means for one model: how it drafts, and how much of the cache a pass needs for that."""

from __future__ import annotations

from dataclasses import replace

from orthrus.config import DecodingConfig, DiffusionConfig
from orthrus.decoding.cycle import Job, Step
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.planning.account import MAX_LOOKUP_DRAFTS
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.measure import measure
from orthrus.decoding.planning.planner import Planner
from orthrus.decoding.planning.policy import MAX_BLOCKS, NODES
from orthrus.runner.runner import Runner


def workspace_positions(runner: Runner, config: DecodingConfig) -> int:
    """The most positions behind the cached ones to which a pass of this configuration writes."""
    if runner.diffusion is None or config.cycle == "ar":
        return runner.workspace_positions(0, 0, 1)
    width = config.width or runner.diffusion.block_size
    if config.cycle == "auto":
        drafts, blocks = max(width, config.tree_nodes or max(NODES)) + MAX_LOOKUP_DRAFTS, MAX_BLOCKS
    else:
        drafts = _tree_nodes(runner.diffusion, config) or width
        blocks = min(drafts + 1, config.candidates or drafts + 1)
    return runner.workspace_positions(drafts, blocks, width)


def _tree_nodes(diffusion: DiffusionConfig, config: DecodingConfig) -> int | None:
    """The most nodes of the trees of a fixed cycle, None for chains; by default as many as a chain would have, which
    take as long to verify. The first row of a block beside AR rows predicts no draft."""
    if config.tree_nodes is not None:
        return config.tree_nodes or None
    rows = min(config.width or diffusion.block_size, diffusion.trained_rows)
    return max(1, rows - (config.cycle == "one-pass"))


def drafting_of(runner: Runner, config: DecodingConfig, costs: CostModel | None) -> Drafting:
    """The drafting settings of a configuration; `costs` are measured if None.

    Raises ValueError if the model cannot be decoded so.
    """
    if runner.diffusion is None:
        if config.cycle != "ar":
            raise ValueError(
                f"cycle {config.cycle!r} needs a diffusion view; this checkpoint has none: use --cycle ar, or"
                " give it one (--adapter, or a published Orthrus checkpoint)"
            )
        return Drafting(1)
    block = runner.diffusion.block_size
    if config.width is not None and config.width > block:
        raise ValueError(f"width {config.width} is beyond the block size {block} of this checkpoint")
    width = config.width or block
    if config.cycle != "auto":
        return Drafting(width, config.candidates, _tree_nodes(runner.diffusion, config))
    alone = config.rule == "rejection"
    planner = Planner(runner.diffusion, width, costs or measure(runner), alone=alone)
    nodes = planner.nodes if config.tree_nodes is None else config.tree_nodes or None
    return Drafting(width, nodes=nodes, planner=planner)


def with_costs(drafting: Drafting, config: DecodingConfig, costs: CostModel) -> Drafting:
    """The same drafting, planned by another cost model from the next pass on, with trees of the size that suits it."""
    planner = drafting.planner
    if not isinstance(planner, Planner):
        return drafting
    planner.use_costs(costs)
    return replace(drafting, nodes=planner.nodes if config.tree_nodes is None else drafting.nodes)


def learn(drafting: Drafting, jobs: list[Job], steps: list[Step]) -> None:
    """Show the planner the verdicts on what it planned. The steps of the decoding sequences come first."""
    planned = [pair for pair in zip(jobs, steps, strict=False) if pair[0].sequence.request.drafts]
    if planned and drafting.planner is not None:
        batch, plans = [job.sequence for job, _ in planned], [job.plan for job, _ in planned]
        drafting.planner.learn(batch, plans, [step.kept for _, step in planned])
