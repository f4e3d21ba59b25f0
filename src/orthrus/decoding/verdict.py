"""The outcome of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """The outcome of one verification: the tokens of the accepted nodes, which are a `path` from the anchor, and the
    bonus token after them."""

    tokens: list[int]
    path: list[int] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """How many drafts were accepted."""
        return len(self.path)
