"""A tree of drafts: the one record of them, from the drafter to the commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor

Kind = Literal["agrees", "differs", "lookup"]
UNKNOWN_CONFIDENCE = 0.7
"""The confidence of a draft about which nothing is known."""


@dataclass(frozen=True)
class DraftTree:
    """A tree of proposed tokens. A chain is a tree in which no node has more than one child.

    Node i proposes `tokens[i]` after the node `parents[i]`, or after the anchor if that is -1. Parents come before
    their children, so the first nodes of a tree are a tree too; siblings have different tokens.

    confidence: per node, the estimated probability that it is accepted if its parent is. kinds: the source of each
    node: a block that predicted the token before its drafts (`agrees`), a block that did not (`differs`), or only the
    text so far, which repeats itself (`lookup`). q: per node, the distribution [V] from which it and its siblings were
    drawn, without replacement; None if it was not drawn. Drawn siblings stand in the order in which they were drawn.
    start: the row of the block that predicted the first token.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    q: list[Tensor | None] = field(default_factory=list)
    start: int = 0

    @staticmethod
    def tree(
        tokens: Sequence[int], parents: Sequence[int], confidence: Sequence[float] = (), kind: Kind = "agrees"
    ) -> DraftTree:
        """A tree from one source, none of whose tokens was drawn. Raises ValueError where it is no tree."""
        count = len(tokens)
        sure = list(confidence) or [UNKNOWN_CONFIDENCE] * count
        if not count == len(parents) == len(sure):
            raise ValueError(f"{count} tokens, {len(parents)} parents and {len(sure)} values of confidence: not a tree")
        if not all(-1 <= parent < node for node, parent in enumerate(parents)):
            raise ValueError(f"parents must come before their children: {list(parents)}")
        if len(set(zip(parents, tokens, strict=True))) != count:
            raise ValueError("siblings must have different tokens")
        return DraftTree(list(tokens), list(parents), sure, [kind] * count, [None] * count)

    @staticmethod
    def chain(tokens: Sequence[int], confidence: Sequence[float] = (), kind: Kind = "agrees") -> DraftTree:
        """A chain from one source, none of whose tokens was drawn."""
        return DraftTree.tree(tokens, range(-1, len(tokens) - 1), confidence, kind)

    def grown(self, token: int, parent: int, confidence: float, q_V: Tensor | None, kind: Kind = "agrees") -> DraftTree:
        """The tree with one more node. Raises ValueError where a sibling has its token."""
        if token in self.children.get(parent, ()):
            raise ValueError("siblings must have different tokens")
        return DraftTree(
            [*self.tokens, token],
            [*self.parents, parent],
            [*self.confidence, confidence],
            [*self.kinds, kind],
            [*self.q, q_V],
            self.start,
        )

    def first(self, count: int) -> DraftTree:
        """The tree of the first `count` nodes."""
        if count >= len(self.tokens):
            return self
        return DraftTree(
            self.tokens[:count],
            self.parents[:count],
            self.confidence[:count],
            self.kinds[:count],
            self.q[:count],
            self.start,
        )

    def in_order(self, nodes: Sequence[int]) -> DraftTree:
        """The tree of these nodes in this order, in which parents come before their children."""
        if [*nodes] == [*range(len(self.tokens))]:
            return self
        place = {-1: -1} | {node: index for index, node in enumerate(nodes)}
        return DraftTree(
            [self.tokens[node] for node in nodes],
            [place[self.parents[node]] for node in nodes],
            [self.confidence[node] for node in nodes],
            [self.kinds[node] for node in nodes],
            [self.q[node] for node in nodes],
            self.start,
        )

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return self.parents == list(range(-1, len(self.tokens) - 1))

    @property
    def from_block(self) -> bool:
        """Whether any node comes from a draft block."""
        return any(kind != "lookup" for kind in self.kinds)

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """By parent, its children: token -> node."""
        found: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            found.setdefault(parent, {})[token] = node
        return found

    @cached_property
    def paths(self) -> list[list[int]]:
        """[m + 1]: the tokens from the anchor to each node, the node included; the first path is that of the anchor.
        Path i is that of row i of a pass that verifies the tree."""
        paths: list[list[int]] = [[]]
        for token, parent in zip(self.tokens, self.parents, strict=True):
            paths.append([*paths[parent + 1], token])
        return paths

    @property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return max(map(len, self.paths))

    @cached_property
    def probabilities(self) -> list[float]:
        """[m]: the probability that a node is accepted: the product of the confidences of its path."""
        found: list[float] = []
        for confidence, parent in zip(self.confidence, self.parents, strict=True):
            found.append(confidence * (found[parent] if parent >= 0 else 1.0))
        return found
