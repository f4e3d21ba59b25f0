"""The extension `include_drafts`: what a pass did, beside the text that it gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orthrus.decoding.cycle import Step
from orthrus.serving.protocol.common import DraftInfo, DraftPiece


def draft_info(index: int, step: Step, decode: Callable[[Sequence[int]], str]) -> DraftInfo:
    """The pass behind a step. index: of the choice."""
    plan, kept, tree = step.plan, step.kept, step.plan.tree
    refused = [node for node in range(plan.offered) if node not in kept.path]
    found: dict[str, Any] = {
        "index": index,
        "pass": step.passes,
        "kind": plan.kind,
        "rows": 1 + plan.offered + plan.blocks * plan.width,
        "pieces": [DraftPiece(text=piece.text, source=piece.source) for piece in step.pieces],
        "rejected": [decode([tree.tokens[node]]) for node in refused],
        "confidence": [tree.confidence[node] for node in [*kept.path, *refused]],
    }
    return DraftInfo(**found)
