"""Prompts and options as the requests that an engine takes: tokenised, checked, and one for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from orthrus.config import SamplingParams
from orthrus.decoding.noise import draw_seed
from orthrus.decoding.sequence import Limits, Request, Sequence
from orthrus.options import Settings, as_integer, wrong
from orthrus.tokenization import Prompt, Tokenization, map_prompts

SamplingParamsOfEach = SamplingParams | Seq[SamplingParams] | None
"""Parameters for all prompts, or a list with those of each."""


class Requests:
    """Makes the requests of one model."""

    def __init__(self, tokenization: Tokenization, limits: Limits) -> None:
        self._tokenization, self._limits = tokenization, limits

    def one(self, prompt: Prompt, options: Mapping[str, Any], sampling_params: SamplingParams | None = None) -> Request:
        """The request of one prompt. Raises ValueError where an option or the prompt is impossible."""
        settings = Settings.of(options, sampling_params=sampling_params)
        tokens = self._tokenization.encode(prompt, settings)
        ends = settings.stop.stop_token_ids | self._tokenization.ends_of(tokens)
        return Request(tokens, settings.sampling, replace(settings.stop, stop_token_ids=ends))

    def samples(
        self,
        prompts: Seq[Prompt],
        options: Mapping[str, Any],
        sampling_params: SamplingParamsOfEach = None,
        n: int | None = None,
    ) -> list[Request]:
        """The requests of `n` samples of each prompt (None: of one), those of one prompt next to each other.

        The samples of a prompt share its seed and differ in their sample index. Raises ValueError naming the prompt
        and what is wrong about it, which an engine would find later.
        """
        count, params = _count(n), _of_each(sampling_params, len(prompts))

        def make(pair: tuple[Prompt, SamplingParams | None]) -> list[Request]:
            request = self.one(pair[0], options, pair[1])
            Sequence(0, request, self._limits, self._tokenization.decode)
            return [request] if n is None else _samples(request, count)

        made = map_prompts(list(zip(prompts, params, strict=True)), make)
        return [request for requests in made for request in requests]


def _samples(request: Request, count: int) -> list[Request]:
    sampling = request.sampling
    seed = draw_seed() if sampling.seed is None else sampling.seed
    indices = range(sampling.sample_index, sampling.sample_index + count)
    return [replace(request, sampling=replace(sampling, seed=seed, sample_index=index)) for index in indices]


def _count(n: object) -> int:
    count = 1 if n is None else as_integer(n)
    if count is None or count < 1:
        raise wrong("n", n, "a number of samples, at least 1")
    return count


def _of_each(params: SamplingParamsOfEach, prompts: int) -> Seq[SamplingParams | None]:
    """The parameters of each prompt. Raises ValueError where a list does not have one for each."""
    if not isinstance(params, list | tuple):
        return [params] * prompts  # type: ignore[list-item]
    if len(params) != prompts:
        raise ValueError(f"sampling_params has {len(params)} entries for {prompts} prompts: give one for each, or one")
    return params
