"""The plan of the next pass for one sequence. Fixed cycles create it directly; the cycle `auto` asks the planner."""

from __future__ import annotations

from dataclasses import dataclass, field

from orthrus.decoding.drafts import Draft


@dataclass(frozen=True)
class PassPlan:
    """What one sequence verifies in the next pass, and how it drafts.

    draft, offered: the drafts at hand, of which the first `offered` are verified. blocks: draft blocks beside the AR
    rows, rooted in AR rows 0 to blocks - 1, each of `width` rows (all sequences of a pass share the width). kind: the
    name of the cycle in the statistics. refresh: whether a diffusion pass makes new drafts first, after which the pass
    is planned again. drafting_rows: rows of the diffusion pass that made the drafts; 0 if there was none.
    """

    draft: Draft = field(default_factory=Draft)
    offered: int = 0
    blocks: int = 0
    width: int = 0
    kind: str = "ar"
    refresh: bool = False
    drafting_rows: int = 0

    @property
    def tokens(self) -> list[int]:
        """The drafts that are verified."""
        return self.draft.tokens[: self.offered]
