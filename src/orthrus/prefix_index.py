"""The pages of earlier sequences, by the tokens they hold: a prompt that starts with the same tokens shares them.

A tree: each node is one page, and its path from the root gives the tokens before it. Only the last page of a sequence
may be partly filled. Keys and values depend on the tokens up to their position alone, and their bits do not depend on
the pass that computed them, so a shared prefix changes no bit. There is a tree per salt: sequences with different salts
share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orthrus.config import PAGE


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    page: int
    parent: _Node | None
    salt: str
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class PrefixIndex:
    """Maps tokens to pages. The cache counts it as one of the holders of a page."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}
        self._by_age: dict[_Node, None] = {}
        """All nodes, the least recently used first. A parent is always used after its children: the first is a leaf."""

    def match(self, tokens: Sequence[int], salt: str = "") -> tuple[list[int], int]:
        """The pages of the longest known prefix of `tokens`, and its length. The last page may match in part."""
        node, pages, length = self._root(salt), [], 0
        while (child := node.children.get(tuple(tokens[length : length + PAGE]))) is not None and len(
            child.tokens
        ) == PAGE:
            node, length = child, length + PAGE
            pages.append(child.page)
        rest = tokens[length : length + PAGE]
        best = max(node.children.values(), key=lambda child: _common(child.tokens, rest), default=None)
        if best is not None and (common := _common(best.tokens, rest)):
            node, length = best, length + common
            pages.append(best.page)
        self._use(node)
        return pages, length

    def insert(self, tokens: Sequence[int], pages: Sequence[int], salt: str = "") -> tuple[list[int], list[int]]:
        """Keep the pages of `tokens`, except those whose tokens are known already.

        Returns the pages that are new here, and those that were dropped for fuller ones.
        """
        node, added, dropped = self._root(salt), [], []
        for start, page in zip(range(0, len(tokens), PAGE), pages, strict=False):
            page_tokens = tuple(tokens[start : start + PAGE])
            child = node.children.get(page_tokens)
            if child is None:
                if any(known.tokens[: len(page_tokens)] == page_tokens for known in node.children.values()):
                    break  # a fuller page has them
                shorter = [k for k in node.children.values() if page_tokens[: len(k.tokens)] == k.tokens]
                for known in shorter:
                    dropped.append(self._remove(known))
                child = node.children[page_tokens] = _Node(page_tokens, page, node, salt)
                added.append(page)
            node = child
        self._use(node)
        return added, dropped

    def evict(self) -> int | None:
        """Drop the page that was least recently used, and return it; None if there is none."""
        return self._remove(next(iter(self._by_age))) if self._by_age else None

    def _root(self, salt: str) -> _Node:
        """The root of a tree. It is kept while the tree has pages."""
        return self._roots.get(salt) or _Node((), -1, None, salt)

    def _use(self, node: _Node) -> None:
        while node.parent is not None:
            self._by_age.pop(node, None)
            self._by_age[node] = None
            node = node.parent
        if node.children:
            self._roots[node.salt] = node

    def _remove(self, node: _Node) -> int:
        assert node.parent is not None and not node.children
        del node.parent.children[node.tokens], self._by_age[node]
        if node.parent.parent is None and not node.parent.children:
            del self._roots[node.salt]
        return node.page


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of equal leading tokens."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
