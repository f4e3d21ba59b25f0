"""The key/value cache that both views share: preallocated slots with one length per slot.

The cache of a slot is its first `lengths[slot]` positions. The positions after them are workspace: a pass writes the
keys of its rows there, and `commit` sets how many of them become cache. A rollback is a `commit` with a smaller length.
A diffusion pass writes its block into the workspace and commits nothing: it leaves the cache untouched, and attention
reads one buffer. `commit` may therefore shorten a slot, or extend it over rows that an AR pass has just written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.config import KEY_BLOCK, DecoderConfig


class KVCache:
    """K and V of `slots` sequences, each [L, B, G, T, E], T grown in multiples of 512 positions."""

    def __init__(self, config: DecoderConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, slots, config.kv_heads, 0, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * slots

    @property
    def capacity(self) -> int:
        """Positions allocated per slot."""
        return self.keys.shape[3]

    @property
    def bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @torch.inference_mode()
    def reserve(self, positions: int) -> None:
        """Allocate at least `positions` positions in every slot. New memory is zero: a masked key must not be NaN."""
        missing = -(-positions // KEY_BLOCK) * KEY_BLOCK - self.capacity
        if missing > 0:
            shape = (*self.keys.shape[:3], missing, self.keys.shape[4])
            self.keys = torch.cat((self.keys, self.keys.new_zeros(shape)), dim=3)
            self.values = torch.cat((self.values, self.values.new_zeros(shape)), dim=3)

    def window(self, start: int, stop: int) -> CacheWindow:
        """The slots `start` to `stop`, for one pass."""
        return CacheWindow(self, start, stop)

    def commit(self, slot: int, length: int) -> None:
        """Set the length of a slot: positions up to it are cache, positions after it are workspace."""
        assert 0 <= length <= self.capacity, (length, self.capacity)
        self.lengths[slot] = length

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy one slot over another, so that active sequences stay in the first slots."""
        length = self.lengths[source]
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]
        self.lengths[target] = length


class CacheWindow:
    """The slots `start` to `stop` of a cache, for one pass over B = stop - start sequences."""

    def __init__(self, cache: KVCache, start: int, stop: int) -> None:
        self._cache, self._slots = cache, slice(start, stop)

    @property
    def lengths(self) -> list[int]:
        """Cached positions of each sequence."""
        return self._cache.lengths[self._slots]

    @property
    def storage(self) -> tuple[Tensor, Tensor]:
        """K and V [L, B, G, T, E] as they are stored, workspace included."""
        return self._cache.keys[:, self._slots], self._cache.values[:, self._slots]

    def reserve(self, positions: int) -> None:
        """Allocate at least `positions` positions in every slot of the cache."""
        self._cache.reserve(positions)

    def layers(self, span: int) -> list[tuple[Tensor, Tensor]]:
        """K and V [B, G, span, E] of every layer, in place: the first `span` positions, cache and workspace."""
        parts = (stored[:, self._slots, :, :span].unbind(0) for stored in (self._cache.keys, self._cache.values))
        return list(zip(*parts, strict=True))
