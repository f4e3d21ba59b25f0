"""From logits to the AR view's own token: argmax, or argmax(log p + Gumbel noise), after all processors.

`targets`, `distributions` and `draft_scores` take all rows of all sequences of a pass in one call and compute on the
device of the logits. A row's bits do not depend on the other rows of the call. A verified row names the path of drafts
that it assumes, so no row needs the token of the row before it, and a `Sampler` advances only by the tokens that are
kept, so it never rolls back. A GPU filters and samples all rows at once. A CPU computes a row when it is asked for,
which leaves out the rows that no accepted path reaches.

N rows of a call, R rows of one sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from orthrus import gumbel
from orthrus.config import SamplingParams
from orthrus.decoding.argmax import best, best_of
from orthrus.decoding.constraints import Grammar, restrict
from orthrus.decoding.custom_processors import CustomProcessors
from orthrus.decoding.filters import filter_scores, filters, softmax
from orthrus.decoding.noise import Noise, add_noise_of_few
from orthrus.decoding.processors import LogitProcessors, process
from orthrus.gumbel import SamplingKernels


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
        functions = params.logits_processors
        self.custom_processors = CustomProcessors(functions, prompt) if functions else None
        self.vocab_size = vocab_size

    def advance(self, tokens: Sequence[int]) -> None:
        """Append tokens that the sequence keeps."""
        self.processors.advance(tokens)
        if self.custom_processors is not None:
            self.custom_processors.advance(tokens)
        if self.grammar is not None:
            self.grammar.advance(tokens)


@dataclass(frozen=True)
class RowRequest:
    """Logits [R, V] of rows of one sequence. Row i is processed as if the sequence had kept the tokens `paths[i]` too,
    and gives the token after them. `position` is the absolute position of the token after an empty path."""

    sampler: Sampler
    logits_RV: Tensor
    position: int
    paths: Sequence[Sequence[int]] = ((),)
    kernels: SamplingKernels = gumbel

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of the sequence."""
        return self.sampler.params

    @property
    def grammar(self) -> Grammar | None:
        """The state of the constraint, if there is one."""
        return self.sampler.grammar

    @property
    def in_turn(self) -> bool:
        """Whether each row is computed when it is asked for."""
        return self.logits_RV.is_cpu or self.grammar is not None or self.sampler.custom_processors is not None

    @property
    def unchanged(self) -> bool:
        """Whether the tokens are sampled from the logits over the temperature, which nothing else changes."""
        sampler = self.sampler
        processed = sampler.processors.active or sampler.custom_processors is not None or sampler.grammar is not None
        return not (processed or filters(self.params) or self.params.greedy)

    def row(self, index: int) -> RowRequest:
        """The request of one row alone."""
        return replace(self, logits_RV=self.logits_RV[index : index + 1], paths=self.paths[index : index + 1])


def targets(requests: Sequence[RowRequest]) -> list[Callable[[int], int]]:
    """Per request, a function from a row to the AR view's own token after it. Advances no sampler."""
    at_once = iter(_targets_at_once([r for r in requests if not r.in_turn]))
    return [_target_in_turn(r) if r.in_turn else next(at_once).__getitem__ for r in requests]


def distributions(requests: Sequence[RowRequest]) -> list[Callable[[int], Tensor]]:
    """Per request, a function from a row to the distribution [V], fp32, that the token after it is drawn from.
    Advances no sampler. All requests sample: none is greedy."""
    at_once = [r for r in requests if not r.in_turn]
    scores = iter(_split(_filtered_at_once(at_once), at_once) if at_once else ())
    return [partial(_distribution, r) if r.in_turn else partial(_softmax_of, next(scores)) for r in requests]


def draft_scores(requests: Sequence[RowRequest], *, noise: bool) -> list[Tensor]:
    """Per request, scores [R, V] of the rows of a draft block: the logits after processors and filters, with the
    `noise` that the target of the row's position will meet. Row i is for `position` + i.

    They are in units of logits: noise is multiplied by the temperature. Penalties ignore the tokens drafted in the rows
    before; a constraint and the caller's processors are left out, since they depend on them.
    """
    unchanged = [r.params.plain or (noise and r.unchanged and r.logits_RV.is_cpu) for r in requests]
    changed = [r for r, same in zip(requests, unchanged, strict=True) if not same]
    pieces = iter(_split(_scores(changed), changed) if changed else ())
    return [
        r.logits_RV if r.params.plain else _noisy_rows(r) if same else _noisy(next(pieces), r, noise=noise)
        for r, same in zip(requests, unchanged, strict=True)
    ]


def _target_in_turn(request: RowRequest) -> Callable[[int], int]:
    plain = request.params.plain and request.grammar is None
    return best_of(request.logits_RV) if plain else partial(_target, request)


def _target(request: RowRequest, row: int) -> int:
    """The token after one row."""
    if not request.params.plain:
        return _sampled(request, row)
    logits_1V, grammar = request.logits_RV[row : row + 1], request.grammar
    (token,) = best(logits_1V)
    if grammar is None or not grammar.goes_on(request.paths[row]) or grammar.allows(token):
        return token
    scores_1V = logits_1V.to(torch.float32, copy=True)
    restrict(scores_1V[0], grammar.mask())
    return best(scores_1V)[0]


def _distribution(request: RowRequest, row: int) -> Tensor:
    return softmax(_filtered(request, row)[0])


def _softmax_of(scores_RV: Tensor, row: int) -> Tensor:
    return softmax(scores_RV[row])


def _filtered(request: RowRequest, row: int) -> Tensor:
    """The scores [1, V] of one row after processors, constraint, temperature and filters. The row after a path that
    the constraint forbids or ends is never kept, so it needs no constraint."""
    custom, scores_1V = request.sampler.custom_processors, _processed([request.row(row)])
    if custom is not None:
        scores_1V = custom.apply(scores_1V[0], request.paths[row])[None]
    scores_1V = _over_temperature(scores_1V, [request.row(row)])
    if request.grammar is not None and request.grammar.goes_on(request.paths[row]):
        restrict(scores_1V[0], request.grammar.mask())
    return scores_1V if request.params.greedy else filter_scores(scores_1V, request.params)


def _targets_at_once(requests: Sequence[RowRequest]) -> list[list[int]]:
    plain = [r for r in requests if r.params.plain]
    others = [r for r in requests if not r.params.plain]
    found: dict[int, list[int]] = {}
    for group in (plain, others):
        if not group:
            continue
        scores_NV = _stack(group) if group is plain else _filtered_at_once(group)
        if group is others:
            for scores_RV, r in zip(_split(scores_NV, group), group, strict=True):
                for scores_V, path in zip(scores_RV, r.paths, strict=True):
                    _add_noise(scores_V, r.sampler, r.position + len(path))
        tokens = iter(best(scores_NV))
        found |= {id(r): list(islice(tokens, len(r.logits_RV))) for r in group}
    return [found[id(r)] for r in requests]


def _filtered_at_once(requests: Sequence[RowRequest]) -> Tensor:
    """The scores [N, V] of all rows after processors, temperature and filters. Rows of the same filters are filtered at
    once."""
    scores_NV = _scores(requests)
    groups: dict[tuple[int, float, float], tuple[SamplingParams, list[int]]] = {}
    first = 0
    for r in requests:
        rows = range(first, first := first + len(r.logits_RV))
        if filters(r.params) and not r.params.greedy:
            groups.setdefault((r.params.top_k, r.params.top_p, r.params.min_p), (r.params, []))[1].extend(rows)
    for params, group in groups.values():
        if len(group) == len(scores_NV):
            filter_scores(scores_NV, params)
        else:
            scores_NV[group] = filter_scores(scores_NV[group], params)
    return scores_NV


def _noisy(scores_RV: Tensor, request: RowRequest, *, noise: bool) -> Tensor:
    """Scores of draft rows with filters, noise and temperature, in place."""
    params = request.params
    if params.greedy:
        return scores_RV
    filter_scores(scores_RV, params)
    for row, scores_V in enumerate(scores_RV if noise else ()):
        position = request.position + row
        if not scores_V.is_cpu:
            _add_noise(scores_V, request.sampler, position)
        elif not _few(scores_V, request.sampler, position):
            one = replace(request, logits_RV=scores_RV[row : row + 1], position=position)
            scores_RV[row : row + 1] = _noisy_rows(one, 1.0)
    return scores_RV.mul_(params.temperature)


def _noisy_rows(request: RowRequest, temperature: float | None = None) -> Tensor:
    """Logits of draft rows, on a CPU, with the noise of the tokens that may win with it, or of all."""
    noise, temperature = request.sampler.noise, temperature or request.params.temperature
    if noise.random is not None:
        return request.kernels.noisy_rows(request.logits_RV, temperature, noise.random, request.position)
    rows, vocabulary = request.logits_RV.shape
    noise_RV = torch.stack([noise.gumbel(request.position + row, vocabulary) for row in range(rows)])
    return request.logits_RV.float() + temperature * noise_RV


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


def _split(scores_NV: Tensor, requests: Sequence[RowRequest]) -> Sequence[Tensor]:
    return scores_NV.split([len(r.logits_RV) for r in requests])


def _scores(requests: Sequence[RowRequest]) -> Tensor:
    """New scores [N, V], fp32: the logits after processors, except the caller's, and temperature, before filters."""
    return _over_temperature(_processed(requests), requests)


def _processed(requests: Sequence[RowRequest]) -> Tensor:
    """New scores [N, V], fp32: the logits after processors, except the caller's."""
    scores_NV = _stack(requests).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    process(scores_NV, [(r.sampler.processors, _paths(r)) for r in requests])
    return scores_NV


def _over_temperature(scores_NV: Tensor, requests: Sequence[RowRequest]) -> Tensor:
    """The scores over the temperatures of their requests, in place."""
    params = [r.params for r in requests for _ in range(len(r.logits_RV))]
    temperatures = [1.0 if one.greedy else one.temperature for one in params]
    # By a tensor: a GPU divides by a number as it multiplies by the inverse, which rounds differently.
    scores_NV /= torch.tensor(temperatures, dtype=torch.float32, device=scores_NV.device)[:, None]
    return scores_NV


def _paths(request: RowRequest) -> Sequence[Sequence[int]]:
    """One path per row; draft rows, which have none, are processed by the tokens that the sequence has kept."""
    rows = len(request.logits_RV)
    return request.paths if len(request.paths) == rows else [()] * rows


def _sampled(request: RowRequest, row: int) -> int:
    """The token after one row on a CPU, by the noise of the tokens that may win with it, or of all."""
    params, noise, position = request.params, request.sampler.noise, request.position + len(request.paths[row])
    scores_1V, temperature = request.logits_RV[row : row + 1], params.temperature
    if not request.unchanged:
        scores_1V, temperature = _filtered(request, row), 1.0
        if params.greedy or _few(scores_1V[0], request.sampler, position):
            return best(scores_1V)[0]
    token = None
    if noise.random is not None:
        token = request.kernels.largest_sum(scores_1V, temperature, noise.random, position)
    if token is None:
        scores_1V = scores_1V.float() / torch.tensor(temperature, dtype=torch.float32)
        (token,) = best(scores_1V + noise.gumbel(position, scores_1V.shape[1]).to(scores_1V.device))
    return token


def _add_noise(scores_V: Tensor, sampler: Sampler, position: int) -> None:
    """Add the Gumbel noise of a row, in place, where it is sampled."""
    if not sampler.params.greedy and not _few(scores_V, sampler, position):
        scores_V += sampler.noise.gumbel(position, len(scores_V)).to(scores_V.device)


def _few(scores_V: Tensor, sampler: Sampler, position: int) -> bool:
    """Add the noise of a row if filters have left few tokens; returns whether they have."""
    return filters(sampler.params) and add_noise_of_few(scores_V, sampler.noise, position)
