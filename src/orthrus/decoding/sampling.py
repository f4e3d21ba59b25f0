"""From logits to the AR view's own token: argmax, or argmax(log p + Gumbel noise), after all processors.

`sample` and `probabilities` take all rows of all sequences of a pass in one call and compute on the device of the
logits. A row's bits do not depend on the other rows of the call. The rows of a verified block name the drafts that they
assume, so no row needs the token of the row before it, and a `Sampler` advances only by the tokens that are kept, so
it never rolls back. A GPU filters and samples all rows at once. A CPU does that row by row and leaves out the rows
after the first refused draft, since it would gain nothing from more rows at once.

N rows of a call, R rows of one sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from orthrus.config import SamplingParams
from orthrus.decoding.constraints import Grammar, restrict
from orthrus.decoding.filters import filter_scores, filters, softmax
from orthrus.decoding.json_digits import Mask
from orthrus.decoding.noise import Noise
from orthrus.decoding.processors import LogitProcessors, process

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
        grammar: Grammar | None = None,
    ) -> None:
        self.params, self.noise, self.grammar = params, noise, grammar
        self.processors = LogitProcessors(params, prompt, end_token_ids, vocab_size)

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps."""
        self.processors.advance(tokens)
        if self.grammar is not None:
            self.grammar.advance(tokens)


@dataclass(frozen=True)
class RowRequest:
    """Logits [R, V] of one sequence; row i is for absolute `position` + i.

    Row i is processed as if the sequence had kept drafts[:i]. Without drafts, all rows are processed by the tokens that
    the sequence has kept.

    drafting: the rows are those of a draft block. All processors but a constraint ignore the tokens drafted in the rows
    before; a constraint follows them, and after its end nothing is drafted.
    """

    sampler: Sampler
    logits_RV: Tensor
    position: int
    drafts: Sequence[int] = ()
    drafting: bool = False

    @property
    def grammar(self) -> Grammar | None:
        """The state of the constraint, if there is one."""
        return self.sampler.grammar


def sample(requests: Sequence[RowRequest]) -> list[list[int]]:
    """The AR view's own token of each row of each request. Advances no sampler.

    The tokens of a request may end with the first that is not the draft of its row: later rows assume that draft.
    """
    plain = [r for r in requests if r.sampler.params.plain]
    others = [r for r in requests if not r.sampler.params.plain]
    plain_tokens = iter(_best_allowed(_split(best(_stack(plain)), plain), plain) if plain else ())
    other_tokens = iter(_sample(_scores(others), others) if others else ())
    return [next(plain_tokens if r.sampler.params.plain else other_tokens) for r in requests]


def probabilities(requests: Sequence[RowRequest]) -> list[Iterator[Tensor]]:
    """Per request, the distributions [V], fp32, that the tokens of its rows are drawn from. Advances no sampler.

    All requests sample: none is greedy. On a CPU and under a constraint, a row is computed when it is asked for; by
    then, a request that drafts holds the tokens of the rows before it in `drafts`.
    """
    if not requests:
        return []
    scores_NV = _scores(requests)
    pieces = _pieces(scores_NV, requests)
    in_turn = [scores_NV.is_cpu or r.grammar is not None for r in requests]
    if not all(in_turn):
        _filter_all(scores_NV, requests)
    return [
        _distributions(scores_RV, r) if alone else (softmax(scores_V) for scores_V in scores_RV)
        for scores_RV, r, alone in zip(pieces, requests, in_turn, strict=True)
    ]


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


def _stack(requests: Sequence[RowRequest]) -> Tensor:
    """All rows [N, V]: a view where the requests are adjacent slices of one tensor, else a copy."""
    pieces = [r.logits_RV for r in requests]
    first, rows = pieces[0], len(pieces[0])
    for piece in pieces[1:]:
        if (
            piece.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or piece.storage_offset() != first.storage_offset() + rows * first.stride(0)
            or piece.stride() != first.stride()
        ):
            return torch.cat(pieces)
        rows += len(piece)
    return first.as_strided((rows, first.shape[1]), first.stride()) if len(pieces) > 1 else first


def _split(tokens: list[int], requests: Sequence[RowRequest]) -> list[list[int]]:
    each = iter(tokens)
    return [list(islice(each, len(r.logits_RV))) for r in requests]


def _pieces(scores_NV: Tensor, requests: Sequence[RowRequest]) -> Sequence[Tensor]:
    return scores_NV.split([len(r.logits_RV) for r in requests])


def _scores(requests: Sequence[RowRequest]) -> Tensor:
    """New scores [N, V], fp32: the logits after all processors and temperature, before filters."""
    scores_NV = _stack(requests).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    process(scores_NV, [(r.sampler.processors, len(r.logits_RV), r.drafts) for r in requests])
    params = [r.sampler.params for r in requests for _ in range(len(r.logits_RV))]
    temperatures = [1.0 if one.greedy else one.temperature for one in params]
    # By a tensor: a GPU divides by a number as it multiplies by the inverse, which rounds differently.
    scores_NV /= torch.tensor(temperatures, dtype=torch.float32, device=scores_NV.device)[:, None]
    return scores_NV


def _best_allowed(tokens: list[list[int]], requests: Sequence[RowRequest]) -> list[list[int]]:
    """Replace the tokens of plain requests that a constraint forbids by the best of those that it allows."""
    for own, r in zip(tokens, requests, strict=True):
        if r.grammar is None:
            continue
        for row, token in enumerate(own):
            if not r.grammar.goes_on(own[:row]):
                if r.drafting:
                    del own[row:]
                break
            chosen = token if r.grammar.allows(token) else _best_of(r.logits_RV[row], r.grammar.mask())
            own[row] = chosen
            if row < len(r.drafts) and chosen != r.drafts[row]:
                break
    return tokens


def _best_of(logits_V: Tensor, mask_V: Mask) -> int:
    scores_V = logits_V.to(torch.float32, copy=True)
    restrict(scores_V, mask_V)
    return best(scores_V[None])[0]


def _sample(scores_NV: Tensor, requests: Sequence[RowRequest]) -> list[list[int]]:
    """On a GPU, rows are sampled at once, but for those under a constraint."""
    pieces = _pieces(scores_NV, requests)
    in_turn = [scores_NV.is_cpu or r.grammar is not None for r in requests]
    tokens = [
        _sample_in_turn(scores_RV, r) if alone else []
        for scores_RV, r, alone in zip(pieces, requests, in_turn, strict=True)
    ]
    if all(in_turn):
        return tokens
    _filter_all(scores_NV, requests)
    for scores_RV, r, alone in zip(pieces, requests, in_turn, strict=True):
        if not alone:
            for position, scores_V in enumerate(scores_RV, start=r.position):
                _add_noise(scores_V, r.sampler, position)
    at_once = _split(best(scores_NV), requests)
    return [own if alone else others for own, others, alone in zip(tokens, at_once, in_turn, strict=True)]


def _sample_in_turn(scores_RV: Tensor, request: RowRequest) -> list[int]:
    """Row by row, up to the first token that is not the draft of its row."""
    tokens: list[int] = []
    for row, scores_1V in enumerate(scores_RV.split(1)):
        if request.grammar is not None:
            if request.grammar.goes_on(tokens):
                restrict(scores_1V[0], request.grammar.mask())
            elif request.drafting:
                break
        if not request.sampler.params.greedy:
            filter_scores(scores_1V, request.sampler.params)
        _add_noise(scores_1V[0], request.sampler, request.position + row)
        tokens += best(scores_1V)
        if row < len(request.drafts) and tokens[-1] != request.drafts[row]:
            break
    return tokens


def _distributions(scores_RV: Tensor, request: RowRequest) -> Iterator[Tensor]:
    """Row by row."""
    for row, scores_1V in enumerate(scores_RV.split(1)):
        if request.grammar is not None:
            if request.grammar.goes_on(request.drafts[:row]):
                restrict(scores_1V[0], request.grammar.mask())
            elif request.drafting:
                return
        yield softmax(filter_scores(scores_1V, request.sampler.params)[0])


def _filter_all(scores_NV: Tensor, requests: Sequence[RowRequest]) -> None:
    """Filter all rows in place, those of the same parameters at once."""
    groups: dict[tuple[int, float, float], tuple[SamplingParams, list[int]]] = {}
    first = 0
    for r in requests:
        params, rows = r.sampler.params, range(first, first := first + len(r.logits_RV))
        if filters(params) and not params.greedy and r.grammar is None:
            groups.setdefault((params.top_k, params.top_p, params.min_p), (params, []))[1].extend(rows)
    for params, group in groups.values():
        if len(group) == len(scores_NV):
            filter_scores(scores_NV, params)
        else:
            scores_NV[group] = filter_scores(scores_NV[group], params)


def _add_noise(scores_V: Tensor, sampler: Sampler, position: int) -> None:
    """Add the Gumbel noise of a row, in place, where it is sampled. Tokens at -inf cannot win: they may go without."""
    if sampler.params.greedy:
        return
    tokens = _kept(scores_V) if filters(sampler.params) else None
    if tokens is None or len(tokens) > _FEW:
        scores_V += sampler.noise.gumbel(position, len(scores_V)).to(scores_V.device)
    elif len(tokens) > 1:
        scores_V[tokens] += sampler.noise.gumbel_of(position, tokens.tolist()).to(scores_V.device)


def _kept(scores_V: Tensor) -> Tensor:
    """The tokens above -inf."""
    if scores_V.is_cpu:  # several times faster than torch
        return torch.from_numpy(np.flatnonzero(scores_V.numpy() > -math.inf))
    return (scores_V > -math.inf).nonzero()[:, 0]
