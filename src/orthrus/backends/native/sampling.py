"""Sampling of rows by Gumbel noise in C. The reference implementation is `orthrus.gumbel`."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import torch
from torch import Tensor

from orthrus.backends.native import structs
from orthrus.gumbel import LOUD_BITS, NEAR, RandomBits, Stream, certain
from orthrus.torch_threads import kernel_threads

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class NativeSampling:
    """The functions of `c/sampled_row.h`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        block, noise = ctypes.POINTER(structs.DraftBlock), ctypes.POINTER(structs.RowNoise)
        stream = ctypes.POINTER(structs.NoiseStream)
        self._largest_sum, self._noisy_rows = library.largest_sum, library.noisy_rows
        self._find_loud = library.find_loud
        self._largest_sum.argtypes, self._largest_sum.restype = (block, noise, _POINTER), _INTEGER
        self._noisy_rows.argtypes, self._noisy_rows.restype = (block, noise, _POINTER, _INTEGER), None
        self._find_loud.argtypes = (stream, *(_INTEGER,) * 3, ctypes.POINTER(structs.LoudTokens))
        self._find_loud.restype = _INTEGER

    def largest_sum(self, logits_1V: Tensor, temperature: float, random: RandomBits, position: int) -> int | None:
        """See `gumbel.largest_sum`."""
        logits_1V = logits_1V.contiguous()
        loud, sums = self._loud(random, position, logits_1V), (ctypes.c_float * 2)()
        rows = _structs(loud)
        token: int = self._largest_sum(_block(logits_1V), _noise(rows, random, position, temperature), sums)
        return token if token >= 0 and sums[0] > certain(sums[1] / temperature) else None

    def noisy_rows(self, logits_RV: Tensor, temperature: float, random: RandomBits, position: int) -> Tensor:
        """See `gumbel.noisy_rows`."""
        logits_RV = logits_RV.contiguous()
        loud = self._loud(random, position, logits_RV)
        scores_RV = logits_RV.new_empty(logits_RV.shape, dtype=torch.float32)
        rows = _structs(loud)
        noise = _noise(rows, random, position, temperature)
        self._noisy_rows(_block(logits_RV), noise, scores_RV.data_ptr(), kernel_threads())
        return scores_RV

    def _loud(self, random: RandomBits, position: int, logits_RV: Tensor) -> list[_Loud]:
        """The loud tokens of the positions of all rows. Drafts and target of a position share them."""
        rows, vocabulary = logits_RV.shape
        return [
            random.remembered("loud", vocabulary, at, partial(self._make_loud, random.stream, at, vocabulary))
            for at in range(position, position + rows)
        ]

    def _make_loud(self, stream: Stream, position: int, vocabulary: int) -> _Loud:
        made = _Loud(vocabulary)
        found = self._find_loud(_stream(stream), position, vocabulary, LOUD_BITS, made.struct)
        assert found == made.struct.count, "more than twice as many as there are on average"
        return made


class _Loud:
    """The loud tokens of a position as C reads them."""

    def __init__(self, vocabulary: int) -> None:
        room = vocabulary // 64 + 64  # more than twice as many as there are on average
        self._kept = np.empty(room, np.int32), np.empty(room, np.float32), np.empty(2 * room, np.uint64)
        self.struct = structs.LoudTokens(*(array.ctypes.data for array in self._kept), room)


def _block(logits_RV: Tensor) -> structs.DraftBlock:
    """Rows of logits, which must stay alive."""
    return structs.DraftBlock(logits_RV.data_ptr(), None, None, *logits_RV.shape, logits_RV.dtype == torch.float32)


def _structs(loud: list[_Loud]) -> ctypes.Array[structs.LoudTokens]:
    """Loud tokens, which must stay alive, one row after another."""
    return (structs.LoudTokens * len(loud))(*(own.struct for own in loud))


def _noise(
    rows: ctypes.Array[structs.LoudTokens], random: RandomBits, position: int, temperature: float
) -> structs.RowNoise:
    """The noise of rows, whose loud tokens must stay alive."""
    stream, loud = _stream(random.stream), ctypes.addressof(rows)
    return structs.RowNoise(stream, position, temperature, NEAR * temperature, loud)


def _stream(stream: Stream) -> structs.NoiseStream:
    halves = [(ctypes.c_uint64 * 2)(value & 2**64 - 1, value >> 64) for value in stream]
    return structs.NoiseStream(*halves)
