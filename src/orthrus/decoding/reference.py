"""The reference implementation: plain AR decoding of one sequence, one token per pass.

It is deliberately separate from the cycles: it shares the runner, the sampler and the noise with them, but no
bookkeeping. The law tests compare every cycle with this loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.decoding.noise import AddressedNoise
from orthrus.decoding.sampling import RowRequest, Sampler, targets
from orthrus.decoding.sequence import Limits, Request
from orthrus.decoding.text import Decode
from orthrus.runner.layout import chunks
from orthrus.runner.runner import Runner


@dataclass(frozen=True)
class OracleResult:
    """The tokens, the finish reason, and with `keep_logits` the logits [N, V] that each token was chosen from."""

    tokens: list[int]
    finish_reason: str
    logits_NV: Tensor | None


def autoregress(
    runner: Runner,
    request: Request,
    limits: Limits,
    seed: int,
    decode: Decode | None = None,
    *,
    keep_logits: bool = False,
) -> OracleResult:
    """Decode `request` with the given seed. The prompt is prefilled in chunks; after it, every pass has one row."""
    ends = limits.end_token_ids | request.stop.stop_token_ids
    noise = AddressedNoise(seed, request.sampling.sample_index)
    grammar = limits.grammar(request.sampling.constraint, ends)
    sampler = Sampler(request.sampling, noise, request.prompt, ends, limits.vocab_size, grammar)
    (table,) = runner.new_tables(1, len(request.prompt) + request.stop.max_new_tokens)
    pending = list(request.prompt)
    tokens: list[int] = []
    kept: list[Tensor] = []
    while True:
        for chunk in chunks(pending, runner.max_rows):
            (logits_1V,) = runner.ar([chunk], [table], logit_rows=[len(chunk) - 1])
            table.commit(table.length + len(chunk))
        if keep_logits:
            kept.append(logits_1V[0].clone())
        (target,) = targets([RowRequest(sampler, logits_1V, len(request.prompt) + len(tokens))])
        token = target(0)
        sampler.advance([token])
        tokens.append(token)
        ending = None if grammar is None else grammar.ending
        reason = _finish(tokens, request, ends, limits, decode) if ending is None else ending.reason
        if reason:
            return OracleResult(tokens, reason, torch.stack(kept) if keep_logits else None)
        pending = tokens[-1:]


def _finish(
    tokens: list[int], request: Request, ends: frozenset[int], limits: Limits, decode: Decode | None
) -> str | None:
    if tokens[-1] in ends:
        return "stop"
    if request.stop.stop_strings and decode is not None:
        text = decode(tokens)
        if any(stop in text for stop in request.stop.stop_strings):
            return "stop"
    if len(tokens) >= request.stop.max_new_tokens or len(request.prompt) + len(tokens) >= limits.max_positions:
        return "length"
    return None
