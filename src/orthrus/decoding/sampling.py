"""From logits to the AR view's own token: argmax, or argmax(log p + Gumbel noise), after all processors.

`sample` and `probabilities` take all rows of all sequences of a pass in one call and compute on the device of the
logits. A row's bits do not depend on the other rows of the call: an operation that does not keep them runs on one row
at a time. No row waits for the token of the row before it: the rows of a verified block name the drafts before them,
and a `Sampler` advances only by the tokens that are kept, so it never rolls back.

N rows of a call, R rows of one sequence, V vocabulary, C candidates of top-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from orthrus.config import SamplingParams
from orthrus.decoding.noise import Noise
from orthrus.decoding.processors import LogitProcessors, process

_LIKELY = 64
"""The set of top-p is first looked for among tokens with at least this share of what it may leave out."""
_FEW = 64
"""Up to this many tokens, it is faster to draw the noise of each than that of the whole vocabulary."""


class Sampler:
    """How the tokens of one sequence are chosen: its parameters, its noise and the state of its processors."""

    def __init__(
        self,
        params: SamplingParams,
        noise: Noise,
        prompt: Sequence[int],
        end_token_ids: frozenset[int],
        vocab_size: int,
    ) -> None:
        self.params, self.noise = params, noise
        self.processors = LogitProcessors(params, prompt, end_token_ids, vocab_size)

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps."""
        self.processors.advance(tokens)


@dataclass(frozen=True)
class RowRequest:
    """Logits [R, V] of one sequence; row i is for absolute `position` + i.

    Row i is processed as if the sequence had kept drafts[:i]. Without drafts, all rows are processed by the tokens that
    the sequence has kept.
    """

    sampler: Sampler
    logits_RV: Tensor
    position: int
    drafts: Sequence[int] = ()


def sample(requests: Sequence[RowRequest]) -> list[list[int]]:
    """The AR view's own token of every row of every request. Advances no sampler."""
    plain = [r for r in requests if r.sampler.params.plain]
    others = [r for r in requests if not r.sampler.params.plain]
    plain_tokens = iter(best(_stack(plain)) if plain else ())
    other_tokens = iter(best(_add_noise(_scores(others), others)) if others else ())
    return [list(islice(plain_tokens if r.sampler.params.plain else other_tokens, len(r.logits_RV))) for r in requests]


def probabilities(requests: Sequence[RowRequest]) -> list[Tensor]:
    """Per request, the distributions [R, V], fp32, that the tokens of its rows are drawn from. Advances no sampler.

    Every sampler samples: none is greedy.
    """
    if not requests:
        return []
    return list(_softmax(_scores(requests)).split([len(r.logits_RV) for r in requests]))


def best(logits_NV: Tensor) -> list[int]:
    """The token of each row's largest logit, the first of equals. No row's answer depends on the others."""
    if logits_NV.device.type == "cpu" and logits_NV.dtype == torch.float32:
        return logits_NV.numpy().argmax(axis=-1).tolist()
    if logits_NV.device.type == "cpu" and logits_NV.dtype == torch.bfloat16:
        bits_NV = logits_NV.view(torch.int16).numpy()  # ordered like the numbers, as long as the largest is positive
        tokens: list[int] = bits_NV.argmax(axis=-1).tolist()
        return [
            token if bits_NV[row, token] > 0 else int(logits_NV[row].float().numpy().argmax())
            for row, token in enumerate(tokens)
        ]
    return torch.argmax(logits_NV, dim=-1).tolist()


def filter_scores(scores_NV: Tensor, params: SamplingParams) -> Tensor:
    """Set all tokens outside top-k, top-p and min-p to -inf, in place. Ties at a border are kept. Scores are fp32."""
    if 0 < params.top_k < scores_NV.shape[1]:
        border_N1 = scores_NV.topk(params.top_k).values[:, -1:]
        scores_NV.masked_fill_(scores_NV < border_N1, -math.inf)
    if params.top_p < 1.0:
        scores_NV.masked_fill_(scores_NV < _top_p_border(scores_NV, params.top_p), -math.inf)
    if params.min_p > 0.0:
        p_NV = _softmax(scores_NV)
        scores_NV.masked_fill_(p_NV < params.min_p * p_NV.amax(dim=-1, keepdim=True), -math.inf)
    return scores_NV


def _stack(requests: Sequence[RowRequest]) -> Tensor:
    """All rows [N, V]: a view where the requests are adjacent slices of one tensor, else a copy."""
    pieces = [r.logits_RV for r in requests]
    first, rows = pieces[0], 0
    for piece in pieces:
        if (
            piece.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or piece.storage_offset() != first.storage_offset() + rows * first.stride(0)
            or piece.stride() != first.stride()
        ):
            return torch.cat(pieces)
        rows += len(piece)
    return first.as_strided((rows, first.shape[1]), first.stride())


def _scores(requests: Sequence[RowRequest]) -> Tensor:
    """New scores [N, V], fp32: the logits after all processors and, of sampled rows, after temperature and filters."""
    scores_NV = _stack(requests).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    process(scores_NV, [(r.sampler.processors, len(r.logits_RV), r.drafts) for r in requests])
    params = [r.sampler.params for r in requests for _ in range(len(r.logits_RV))]
    temperatures = [1.0 if one.greedy else one.temperature for one in params]
    scores_NV /= torch.tensor(temperatures, dtype=torch.float32, device=scores_NV.device)[:, None]
    groups: dict[tuple[int, float, float], list[int]] = {}
    for row, one in enumerate(params):
        if _filters(one):
            groups.setdefault((one.top_k, one.top_p, one.min_p), []).append(row)
    for rows in groups.values():
        if len(rows) == len(scores_NV):
            filter_scores(scores_NV, params[0])
        else:
            scores_NV[rows] = filter_scores(scores_NV[rows], params[rows[0]])
    return scores_NV


def _filters(params: SamplingParams) -> bool:
    return not params.greedy and (params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0)


def _add_noise(scores_NV: Tensor, requests: Sequence[RowRequest]) -> Tensor:
    """Add Gumbel noise to the sampled rows, in place. Tokens at -inf cannot win, so they may go without."""
    rows = iter(scores_NV)
    for request in requests:
        params, noise = request.sampler.params, request.sampler.noise
        for position, scores_V in enumerate(islice(rows, len(request.logits_RV)), start=request.position):
            if params.greedy:
                continue
            tokens = _kept(scores_V) if _filters(params) else None
            if tokens is None or len(tokens) > _FEW:
                scores_V.add_(noise.gumbel(position, len(scores_V)).to(scores_V.device))
            elif len(tokens) > 1:
                index = torch.tensor(tokens, device=scores_V.device)
                scores_V[index] += noise.gumbel_of(position, tokens).to(scores_V.device)
    return scores_NV


def _kept(scores_V: Tensor) -> list[int]:
    """The tokens above -inf."""
    if scores_V.is_cpu:  # several times faster than torch
        kept: list[int] = np.flatnonzero(scores_V.numpy() > -math.inf).tolist()
        return kept
    return (scores_V > -math.inf).nonzero().flatten().tolist()


def _softmax(scores_NV: Tensor) -> Tensor:
    if scores_NV.is_cpu:
        return scores_NV.softmax(dim=-1)
    return torch.stack([scores_V.softmax(dim=-1) for scores_V in _rows_apart(scores_NV)])


def _rows_apart(scores_NV: Tensor) -> list[Tensor]:
    """Each row [V], on a GPU in storage of its own: how a sum splits may depend on the alignment of its row there."""
    return [scores_V if scores_V.is_cpu else scores_V.clone() for scores_V in scores_NV]


def _top_p_border(scores_NV: Tensor, top_p: float) -> Tensor:
    """Of each row, the score [N, 1] of the last token of the smallest set whose probability reaches `top_p`."""
    # One row at a time: torch splits a sum over the threads by how many sums there are.
    total_N1 = torch.stack([scores_V.logsumexp(dim=-1, keepdim=True) for scores_V in _rows_apart(scores_NV)])
    border_N1, found_N1 = _border_among(scores_NV, total_N1, top_p, _LIKELY)
    if not found_N1.all():  # what has less than 1/V of the rest cannot be needed
        left = (~found_N1[:, 0]).nonzero()[:, 0]
        scores_MV = scores_NV[left]
        border_M1, found_M1 = _border_among(scores_MV, total_N1[left], top_p, scores_NV.shape[1])
        border_N1[left] = torch.where(found_M1, border_M1, scores_MV.amin(dim=-1, keepdim=True))
    return border_N1


def _border_among(scores_NV: Tensor, total_N1: Tensor, top_p: float, share: int) -> tuple[Tensor, Tensor]:
    """The border of each row, and whether it is among the tokens with at least 1/`share` of what may be left out."""
    least_N1 = (total_N1.double() + math.log((1 - top_p) / share)).float()
    best_NC = _descending(scores_NV, least_N1)
    # One row at a time: a GPU splits a cumulative sum by how many there are.
    reached_NC = torch.stack([p_C.cumsum(dim=-1) for p_C in (best_NC - total_N1).exp().double()])
    last_N1 = (reached_NC < top_p).sum(dim=-1, keepdim=True).clamp_(max=best_NC.shape[1] - 1)
    border_N1 = best_NC.gather(1, last_N1)
    return border_N1, border_N1 >= least_N1


def _descending(scores_NV: Tensor, least_N1: Tensor) -> Tensor:
    """The scores of each row, the largest first. Those below its `least` may be replaced by fewer of -inf."""
    if not scores_NV.is_cpu:
        return scores_NV.sort(dim=-1, descending=True).values
    scores = scores_NV.numpy()  # sorts values alone, many times faster than torch
    likely = scores >= least_N1.numpy()
    counts = np.count_nonzero(likely, axis=1)
    best = np.full((len(scores), counts.max() + 1), -math.inf, dtype=np.float32)
    best[np.arange(best.shape[1]) < counts[:, None]] = scores[likely]
    best.sort(axis=1)
    return torch.from_numpy(best[:, ::-1].copy())
