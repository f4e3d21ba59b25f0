"""The parts of a GPU run, in order of value. To add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from orthrus.bench.gpu import decoding, laws, linears, passes, peers, prefill, training
from orthrus.bench.gpu.settings import Settings

Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """seconds: its time limit. measure: yields its result whenever there is more of it. headline, advice: of a result,
    for the summary."""

    seconds: float
    measure: Callable[[Settings], Iterator[Result]]
    headline: Callable[[Result], str]
    advice: Callable[[Result], list[str]]


def _part(seconds: float, module: Any, measure: Callable[..., Iterator[Result]] | None = None, **options: str) -> Part:
    return Part(seconds, partial(measure or module.measure, **options), module.headline, module.advice)


PARTS: dict[str, Part] = {
    "laws": _part(200, laws, select="(qwen3 and not moe) or llama"),
    "passes-1.7b": _part(150, passes, shape="qwen3-1.7b"),
    "decoding": _part(200, decoding),
    "linears-1.7b": _part(60, linears, shape="qwen3-1.7b"),
    "passes-0.6b": _part(90, passes, shape="qwen3-0.6b"),
    "passes-8b": _part(120, passes, shape="qwen3-8b"),
    "prefill-1.7b": _part(60, prefill, shape="qwen3-1.7b"),
    "transformers": _part(90, peers, peer="transformers"),
    "distill": _part(180, training, training.distill),
    "train": _part(240, training, training.train),
    "passes-4b": _part(100, passes, shape="qwen3-4b"),
    "vllm": _part(180, peers, peer="vllm"),
    "other-laws": _part(400, laws, select="not ((qwen3 and not moe) or llama)"),
}
