"""Logit processors: penalties, bias and minimum length, which depend on the tokens of the sequence so far.

They change few scores per row, so each is applied as one gather and one scatter over all rows of all sequences.

N rows of a call, R rows of one sequence, V vocabulary, U tokens with a penalty, M scores to change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orthrus.config import SamplingParams

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Edits:
    """Score changes: the row [M] and token [M] of each, and the terms [T, M] from which the new score is computed."""

    rows_M: Integers
    tokens_M: Integers
    terms_TM: Floats


class LogitProcessors:
    """The processors of one sequence, with the token counts that they need."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], end_token_ids: frozenset[int], vocab_size: int
    ) -> None:
        _check_vocabulary(params, vocab_size)
        self._params, self._generated = params, 0
        self._ends_U = np.array(sorted(end_token_ids), dtype=np.int64)
        bias = dict(params.logit_bias)
        self._biased_U = np.array(list(bias), dtype=np.int64)
        self._bias_U = np.array(list(bias.values()), dtype=np.float32)
        if params.penalised:
            self._seen_V, self._counts_V = np.zeros(vocab_size, dtype=np.bool_), np.zeros(vocab_size, dtype=np.float32)
            if params.repetition_penalty != 1.0:  # the other penalties do not count the prompt
                self._seen_V[list(prompt)] = True

    @property
    def active(self) -> bool:
        """Whether any processor may change a score."""
        params = self._params
        return params.penalised or bool(params.logit_bias) or self._generated < params.min_new_tokens

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps."""
        self._generated += len(tokens)
        if self._params.penalised:
            self._seen_V[tokens] = True
            np.add.at(self._counts_V, tokens, np.float32(1))

    def penalties(self, paths: Sequence[Sequence[int]]) -> Edits:
        """Edits of the penalties. Terms: factor of positive scores, of other scores, frequency and presence penalty."""
        params = self._params
        if not params.penalised:
            return _edits((), self._ends_U)
        drafted = np.array([token for path in paths for token in path], dtype=np.int64)
        tokens_U = np.union1d(np.flatnonzero(self._seen_V), drafted)
        counts_RU = np.repeat(self._counts_V[tokens_U][None], len(paths), axis=0)
        seen_RU = np.repeat(self._seen_V[tokens_U][None], len(paths), axis=0)
        for row, path in enumerate(paths):
            for token in path:
                counts_RU[row] += tokens_U == token
                seen_RU[row] |= tokens_U == token
        return _edits(
            range(len(paths)),
            tokens_U,
            np.where(seen_RU, np.float32(1 / params.repetition_penalty), np.float32(1)),
            np.where(seen_RU, np.float32(params.repetition_penalty), np.float32(1)),
            np.float32(params.frequency_penalty) * counts_RU,
            np.float32(params.presence_penalty) * (counts_RU > 0),
        )

    def biases(self, paths: Sequence[Sequence[int]]) -> Edits:
        """Edits of the logit bias. Term: the bias to add."""
        return _edits(range(len(paths)), self._biased_U, np.repeat(self._bias_U[None], len(paths), axis=0))

    def bans(self, paths: Sequence[Sequence[int]]) -> Edits:
        """Edits that forbid end tokens in rows below the minimum length. No terms."""
        lengths = [self._generated + len(path) for path in paths]
        return _edits([row for row, n in enumerate(lengths) if n < self._params.min_new_tokens], self._ends_U)


def process(scores_NV: Tensor, requests: Sequence[tuple[LogitProcessors, Sequence[Sequence[int]]]]) -> None:
    """Apply the processors of each sequence to its rows, in place. Scores are fp32 and contiguous.

    `requests` holds, per sequence, its processors and a path per row: each row is processed as if the sequence had kept
    the tokens of its path too.
    """
    firsts = accumulate((len(paths) for _, paths in requests), initial=0)
    active = [(first, *request) for first, request in zip(firsts, requests, strict=False) if request[0].active]
    for edits_of, changed in (
        (LogitProcessors.penalties, _penalised),
        (LogitProcessors.biases, _biased),
        (LogitProcessors.bans, _banned),
    ):
        edits = [(first, edits_of(processors, paths)) for first, processors, paths in active]
        edits = [(first, of_sequence) for first, of_sequence in edits if len(of_sequence.rows_M)]
        if edits:
            index = [(first + e.rows_M) * scores_NV.shape[1] + e.tokens_M for first, e in edits]
            index_M = torch.from_numpy(np.concatenate(index)).to(scores_NV.device)
            terms_TM = torch.from_numpy(np.concatenate([e.terms_TM for _, e in edits], axis=1)).to(scores_NV.device)
            scores = scores_NV.view(-1)
            scores[index_M] = changed(scores[index_M], terms_TM)


def _biased(scores_M: Tensor, terms_TM: Tensor) -> Tensor:
    return scores_M + terms_TM[0]


def _banned(scores_M: Tensor, terms_TM: Tensor) -> Tensor:
    del terms_TM
    return torch.full_like(scores_M, -math.inf)


def _penalised(scores_M: Tensor, terms_TM: Tensor) -> Tensor:
    positive, other, frequency, presence = terms_TM
    return scores_M * torch.where(scores_M > 0, positive, other) - frequency - presence


def _edits(rows: Sequence[int], tokens_U: Integers, *terms: Floats) -> Edits:
    """Edits of every given token in every given row; each term is [R, U]."""
    rows_R = np.array(rows, dtype=np.int64)
    shape = (len(terms), len(rows_R) * len(tokens_U))
    flat_TM = np.stack(terms).reshape(shape) if terms else np.empty(shape, dtype=np.float32)
    return Edits(np.repeat(rows_R, len(tokens_U)), np.tile(tokens_U, len(rows_R)), flat_TM)


def _check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            raise ValueError(f"logit_bias names token {token}; the vocabulary ends at {vocab_size - 1}")
