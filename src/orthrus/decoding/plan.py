"""The plan of the next pass for one sequence. Fixed cycles create it directly; the cycle `auto` asks the planner."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from orthrus.drafters.tree import DraftTree


@dataclass(frozen=True)
class PassPlan:
    """What one sequence verifies in the next pass, and how it drafts.

    draft, offered: the drafts at hand, of which the first `offered` nodes are verified. roots: the nodes whose AR rows
    are roots of draft blocks, -1 for the row of the anchor; each block has `width` rows (all sequences of a pass share
    the width). kind: the name of the cycle in the statistics. refresh: whether a diffusion pass makes new drafts first,
    after which the pass is planned again. drafting_rows: rows of the diffusion pass that made the drafts; 0 if there
    was none. probabilities: of the drafts to be accepted, where the planner estimated them.
    """

    draft: DraftTree = field(default_factory=DraftTree)
    offered: int = 0
    roots: tuple[int, ...] = ()
    width: int = 0
    kind: str = "ar"
    refresh: bool = False
    drafting_rows: int = 0
    probabilities: list[float] = field(default_factory=list)

    @cached_property
    def tree(self) -> DraftTree:
        """The drafts that are verified."""
        return self.draft.first(self.offered)

    def without_distributions(self) -> PassPlan:
        """The plan for those who only read it: without the distributions from which drafts were drawn, which take up
        the size of the vocabulary per draft."""
        if all(q is None for q in self.draft.q):
            return self
        return replace(self, draft=replace(self.draft, q=[None] * len(self.draft.tokens)))

    @property
    def blocks(self) -> int:
        """How many draft blocks share the pass."""
        return len(self.roots)

    def block_for(self, path: list[int]) -> tuple[int, int] | None:
        """The block to draft from after an accepted path: its number, and how many drafts were accepted up to its root.
        It is the block of the deepest accepted node that has one; None if there is none."""
        ends = [-1, *path]
        rooted = [(self.roots.index(node), depth) for depth, node in enumerate(ends) if node in self.roots]
        return rooted[-1] if rooted else None
