"""The paged key/value cache that both views share.

Keys and values live in pages of `PAGE` positions. Attention splits its keys at multiples of `PAGE`, so that where a
page lies cannot change a bit. A sequence has a `BlockTable`: its pages in order, and its length. Its cache is the first
`length` positions; the positions after them are workspace: a pass writes the keys of its rows there, and `commit` sets
how many of them become cache. A rollback is a `commit` with a smaller length. A diffusion pass writes its block into
the workspace and commits nothing.

Growing a sequence takes pages and copies nothing. Sequences share a prefix by sharing its pages, which are counted. A
page that others hold too is copied before it is written (copy on write).

On a CPU the memory of a page is taken when it is first written, so a cache may be larger than what is ever used of it.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from heapq import heappop, heappush
from math import prod

import torch
from torch import Tensor

from orthrus.config import PAGE
from orthrus.decoder_config import DecoderConfig
from orthrus.prefix_index import PrefixIndex


class OutOfPagesError(Exception):
    """All pages of the cache are in use."""


def pages_for(positions: int) -> int:
    """The number of pages that hold `positions` positions."""
    return -(-positions // PAGE)


class KVCache:
    """K and V of all sequences, each [L, G, S, E] with S = pages * PAGE slots.

    Pages of earlier sequences are kept for prompts that start with the same tokens. They are given up, least recently
    used first, when no other page is free.
    """

    def __init__(self, config: DecoderConfig, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (2, config.layers, config.kv_heads, pages * PAGE, config.head_dim)
        self._stored = _zeros(shape, dtype, device)
        self.keys, self.values = self._stored
        self.pages, self.page_bytes = pages, page_bytes(config, dtype)
        self._prefixes = PrefixIndex()
        self._free = list(range(pages))  # a heap: the lowest page first, so that a single sequence lies in one piece
        self._holders = [0] * pages
        self._indexed = [False] * pages
        self._idle = 0

    @property
    def pages_in_use(self) -> int:
        """Pages that sequences hold. Those that are only kept for later prompts do not count."""
        return self.pages - len(self._free) - self._idle

    @property
    def available_pages(self) -> int:
        """Pages that can be taken: free ones, and those that are only kept for later prompts."""
        return len(self._free) + self._idle

    def holders(self, page: int) -> int:
        """How many hold a page: sequences, and the prefix index."""
        return self._holders[page]

    def take(self) -> int:
        """A free page. Raises OutOfPagesError if there is none, and none that is only kept for later prompts."""
        while not self._free:
            page = self._prefixes.evict()
            if page is None:
                raise OutOfPagesError
            self._unindex(page)
        page = heappop(self._free)
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """Count one more holder of a page."""
        self._idle -= self._is_idle(page)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Count one holder less; without holders the page is free."""
        self._holders[page] -= 1
        self._idle += self._is_idle(page)
        if self._holders[page] == 0:
            heappush(self._free, page)

    def known_prefix(self, tokens: Sequence[int], salt: str = "") -> tuple[list[int], int]:
        """The pages of the longest prefix of `tokens` that is kept with this salt, and its length. The last page may
        match in part."""
        return self._prefixes.match(tokens, salt)

    def keep_prefix(self, tokens: Sequence[int], pages: Sequence[int], salt: str = "") -> None:
        """Keep the pages of `tokens`, which a sequence holds, for later prompts with the same salt."""
        added, dropped = self._prefixes.insert(tokens, pages, salt)
        for page in added:
            self.share(page)
            self._indexed[page] = True
        for page in dropped:
            self._unindex(page)

    def _unindex(self, page: int) -> None:
        self._idle -= self._is_idle(page)
        self._indexed[page] = False
        self.release(page)

    def _is_idle(self, page: int) -> bool:
        """Whether only the prefix index holds a page."""
        return self._indexed[page] and self._holders[page] == 1

    @torch.inference_mode()
    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the keys and values of single slots, one after another."""
        for source, target in zip(sources, targets, strict=True):
            self._stored[..., target, :] = self._stored[..., source, :]

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page."""
        paged = self._stored.unflatten(-2, (self.pages, PAGE))
        paged[..., target, :, :] = paged[..., source, :, :]


class BlockTable:
    """The pages of one sequence, and its length: how many of its positions are cached."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.pages: list[int] = []
        self.length = 0

    def reserve(self, positions: int) -> None:
        """Hold pages for `positions` positions, the ones after the cached length for itself alone.

        Raises OutOfPagesError where they cannot be had; the table then holds the pages that it got so far.
        """
        for index in range(self.length // PAGE, len(self.pages)):
            page = self.pages[index]
            if self.cache.holders(page) > 1:
                self.pages[index] = own = self.cache.take()
                if index * PAGE < self.length:
                    self.cache.copy_page(page, own)
                self.cache.release(page)
        while len(self.pages) * PAGE < positions:
            self.pages.append(self.cache.take())

    def pages_missing(self, positions: int) -> int:
        """How many pages `reserve` would take."""
        written = self.pages[self.length // PAGE :]
        shared = sum(self.cache.holders(page) > 1 for page in written)
        return max(0, pages_for(positions) - len(self.pages)) + shared

    def slots(self, start: int, stop: int) -> list[int]:
        """The slots of the positions `start` to `stop` in the cache."""
        slots: list[int] = []
        while start < stop:
            end = min(stop, (start // PAGE + 1) * PAGE)
            offset = (self.pages[start // PAGE] - start // PAGE) * PAGE
            slots += range(start + offset, end + offset)
            start = end
        return slots

    def commit(self, length: int) -> None:
        """Set the length: positions up to it are cache, positions after it are workspace."""
        assert 0 <= length <= len(self.pages) * PAGE, (length, len(self.pages))
        self.length = length

    def commit_path(self, rows: Sequence[int]) -> None:
        """Commit the given rows of the last pass, ascending, and no others: keys and values move to where they belong.

        Row r was written r positions after the cached ones.
        """
        if list(rows) != list(range(len(rows))):
            written = self.slots(self.length, self.length + rows[-1] + 1)
            moved = [place for place, row in enumerate(rows) if place != row]
            self.cache.copy_slots([written[rows[place]] for place in moved], [written[place] for place in moved])
        self.length += len(rows)

    def adopt(self, pages: Sequence[int], length: int) -> None:
        """Share the pages of a prefix of `length` positions. Only an empty table can."""
        assert not self.pages
        for page in pages:
            self.cache.share(page)
        self.pages, self.length = list(pages), length

    def free(self) -> None:
        """Give up all pages."""
        for page in self.pages:
            self.cache.release(page)
        self.pages, self.length = [], 0


def page_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """The bytes of keys and values of one page."""
    return 2 * config.layers * config.kv_heads * PAGE * config.head_dim * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, as a masked key must not be NaN. On a CPU the system provides them when they are first touched."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)
