"""From logits to the AR view's own token: argmax, or argmax(log p + Gumbel noise), after all processors.

A `Sampler` belongs to one sequence. It is told every committed token, in order, and nothing else, so its state never
has to be rolled back: rows of a verified block are asked for one by one, each after the token before it was accepted.
Each row is processed alone, in one shape, so its bits do not depend on how many rows are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from orthrus.config import SamplingParams
from orthrus.decoding.noise import Noise

_LIKELY = 64
"""The set of top-p is first looked for among tokens with at least this share of what it may leave out."""


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(
        self,
        params: SamplingParams,
        noise: Noise,
        prompt: Sequence[int],
        end_token_ids: frozenset[int],
        vocab_size: int,
    ) -> None:
        _check_vocabulary(params, vocab_size)
        self.params, self.noise, self._vocab_size = params, noise, vocab_size
        self._generated = 0
        self._ends = torch.tensor(sorted(end_token_ids), dtype=torch.long)
        self._bias_ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.long)
        self._bias = torch.tensor([bias for _, bias in params.logit_bias])
        if params.penalised:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(list(prompt), dtype=torch.long)] = True
            self._counts = torch.zeros(vocab_size)

    def targets(self, logits_RV: Tensor, position: int) -> Iterator[int]:
        """The AR view's tokens, row by row, the first for absolute `position`.

        Lazy: asking for a row says that the token given for the row before it was committed.
        """
        if self.params.plain:
            yield from best(logits_RV)
            return
        for row, logits_V in enumerate(logits_RV):
            token = self._choose(self._adjusted(logits_V), position + row)
            self.commit(token)
            yield token

    def propose(self, logits_RV: Tensor, position: int) -> list[int]:
        """Drafts for `position` and after, from diffusion logits, with the noise their targets will meet."""
        if self.params.plain:
            return best(logits_RV)
        return [self._choose(self._adjusted(logits_V), position + row) for row, logits_V in enumerate(logits_RV)]

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """The distribution [V], fp32, that the next token is drawn from, given the tokens committed so far."""
        return filter_scores(self._adjusted(logits_V) / self.params.temperature, self.params).softmax(dim=-1)

    def commit(self, token: int) -> None:
        """Tell the sampler of a token that was chosen from `probabilities`."""
        self._generated += 1
        if self.params.penalised:
            self._seen[token] = True
            self._counts[token] += 1

    def _adjusted(self, logits_V: Tensor) -> Tensor:
        """Penalties, bias, minimum length: fp32 [V] on the host."""
        params, scores = self.params, logits_V.float().cpu().clone()
        if params.penalised:
            if params.repetition_penalty != 1.0:
                factor = torch.where(scores > 0, 1 / params.repetition_penalty, params.repetition_penalty)
                scores = torch.where(self._seen, scores * factor, scores)
            scores -= params.frequency_penalty * self._counts
            scores -= params.presence_penalty * (self._counts > 0)
        scores[self._bias_ids] += self._bias
        if self._generated < params.min_new_tokens:
            scores[self._ends] = float("-inf")
        return scores

    def _choose(self, scores_V: Tensor, position: int) -> int:
        if self.params.greedy:
            return best(scores_V[None])[0]
        filtered_V = filter_scores(scores_V / self.params.temperature, self.params)
        return best((filtered_V + self.noise.gumbel(position, self._vocab_size))[None])[0]


def best(logits_RV: Tensor) -> list[int]:
    """The token of each row's largest logit, the first of equals. No row's answer depends on the others."""
    if logits_RV.device.type == "cpu" and logits_RV.dtype == torch.float32:
        return logits_RV.numpy().argmax(axis=-1).tolist()
    if logits_RV.device.type == "cpu" and logits_RV.dtype == torch.bfloat16:
        bits_RV = logits_RV.view(torch.int16).numpy()  # ordered like the numbers, as long as the largest is positive
        tokens: list[int] = bits_RV.argmax(axis=-1).tolist()
        return [
            token if bits_RV[row, token] > 0 else int(logits_RV[row].float().numpy().argmax())
            for row, token in enumerate(tokens)
        ]
    return torch.argmax(logits_RV, dim=-1).tolist()


def filter_scores(scores_V: Tensor, params: SamplingParams) -> Tensor:
    """Set all tokens outside top-k, top-p and min-p to -inf. Ties at a border are kept. scores [V] fp32."""
    if 0 < params.top_k < len(scores_V):
        border = scores_V.topk(params.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < border, float("-inf"))
    if params.top_p < 1.0:
        scores_V = scores_V.masked_fill(scores_V < _top_p_border(scores_V, params.top_p), float("-inf"))
    if params.min_p > 0.0:
        probabilities = scores_V.softmax(dim=-1)
        scores_V = scores_V.masked_fill(probabilities < params.min_p * probabilities.max(), float("-inf"))
    return scores_V


def _top_p_border(scores_V: Tensor, top_p: float) -> Tensor:
    """The score of the last token of the smallest set whose probability reaches `top_p`."""
    total, V = float(scores_V.logsumexp(dim=-1)), len(scores_V)
    for share in (_LIKELY, V):  # what has less than 1/V of the rest cannot be needed; mostly far fewer tokens do
        likely = scores_V.numpy()[scores_V.numpy() >= total + math.log((1 - top_p) / share)]
        best = torch.from_numpy(np.sort(likely)[::-1].copy())
        inside = (best - total).exp().double().cumsum(dim=-1) < top_p
        if not inside.all():
            return best[int(inside.sum())]
    return scores_V.min()


def _check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            raise ValueError(f"logit_bias names token {token}; the vocabulary ends at {vocab_size - 1}")
