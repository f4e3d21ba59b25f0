"""Filters: top-k, top-p and min-p set the scores of all other tokens to -inf.

A row's bits do not depend on the number of rows. Where torch splits a sum by how many sums there are, or by how a row
is aligned, the sum runs on one row at a time.

N rows, V vocabulary, C candidates of top-p.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from orthrus.config import SamplingParams

_LIKELY = 64
"""The set of top-p is first looked for among tokens with at least this share of what it may leave out."""


def filters(params: SamplingParams) -> bool:
    """Whether `filter_scores` may change a score."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def filter_scores(scores_NV: Tensor, params: SamplingParams) -> Tensor:
    """Set all tokens outside top-k, top-p and min-p to -inf, in place. Ties at a border are kept. Scores are fp32."""
    if 0 < params.top_k < scores_NV.shape[1]:
        _drop_below(scores_NV, scores_NV, scores_NV.topk(params.top_k).values[:, -1:])
    if params.top_p < 1.0:
        border = top_p_border_by_row if scores_NV.is_cpu else top_p_border_by_sort
        _drop_below(scores_NV, scores_NV, border(scores_NV, params.top_p))
    if params.min_p > 0.0:
        p_NV = torch.stack([softmax(scores_V) for scores_V in scores_NV])
        _drop_below(scores_NV, p_NV, params.min_p * p_NV.amax(dim=-1, keepdim=True))
    return scores_NV


def softmax(scores_V: Tensor) -> Tensor:
    """Softmax of one row. On a CPU, torch also opens a parallel region for any two rows, however short."""
    return _apart(scores_V).softmax(dim=-1)


def top_p_border_by_row(scores_NV: Tensor, top_p: float) -> Tensor:
    """Of each row, the score [N, 1] of the last token of the smallest set whose probability reaches `top_p`.

    For a CPU, where the few likely tokens of a row are found faster than a row is sorted.
    """
    return torch.stack([_top_p_border(scores_V, top_p) for scores_V in scores_NV])[:, None]


def top_p_border_by_sort(scores_NV: Tensor, top_p: float) -> Tensor:
    """The same for a GPU: without branches, so that nothing waits for the device."""
    total_N1 = torch.stack(
        [_apart(scores_V).double().logsumexp(dim=-1, keepdim=True) for scores_V in scores_NV]
    ).float()
    best_NV = scores_NV.sort(dim=-1, descending=True).values
    share_NV = (best_NV - total_N1).exp().double()
    reached_NV = torch.stack([_apart(share_V).cumsum(dim=-1) for share_V in share_NV])
    last_N1 = (reached_NV < top_p).sum(dim=-1, keepdim=True).clamp_(max=scores_NV.shape[1] - 1)
    border_N1, least_N1 = best_NV.gather(1, last_N1), total_N1.double() + math.log((1 - top_p) / scores_NV.shape[1])
    return torch.where(border_N1 >= least_N1.float(), border_N1, scores_NV.amin(dim=-1, keepdim=True))


def _top_p_border(scores_V: Tensor, top_p: float) -> Tensor:
    scores, V = scores_V.numpy(), len(scores_V)
    top = float(scores.max())  # by numpy, whose sum does not depend on the number of threads
    total = top + math.log(np.exp(scores - top, dtype=np.float64).sum()) if math.isfinite(top) else top
    for share in (_LIKELY, V):  # what has less than 1/V of the rest cannot be needed; mostly far fewer tokens do
        likely = scores[scores >= total + math.log((1 - top_p) / share)]
        best_C = torch.from_numpy(np.sort(likely)[::-1].copy())
        inside_C = (best_C - total).exp().double().cumsum(dim=-1) < top_p
        if not inside_C.all():
            return best_C[int(inside_C.sum())]
    return scores_V.min()


def _apart(scores_V: Tensor) -> Tensor:
    """The row, on a GPU in storage of its own: how a sum splits there may depend on the alignment of the row."""
    return scores_V if scores_V.is_cpu else scores_V.clone()


def _drop_below(scores_NV: Tensor, values_NV: Tensor, border_N1: Tensor) -> None:
    """Set the scores whose values are below the border of their row to -inf, in place."""
    if not scores_NV.is_cpu:
        scores_NV.masked_fill_(values_NV < border_N1, -math.inf)
        return
    scores = scores_NV.numpy().reshape(-1)
    kept = np.flatnonzero(~(values_NV.numpy() < border_N1.numpy()))  # few: several times faster than to fill by a mask
    kept_scores = scores[kept]
    scores.fill(-math.inf)
    scores[kept] = kept_scores
