"""Compare plain decoding with `transformers` generate() on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from orthrus.api import Model, Options
from orthrus.bench import exactness
from orthrus.bench.measure import decode_alone
from orthrus.bench.tasks import TaskPrompt
from orthrus.checkpoint import export, hub, published
from orthrus.decoding.reference import OracleResult
from orthrus.decoding.sequence import Request

WARM_UP = 4
"""The most tokens of a first answer, which is not timed."""


def load(model: Model) -> PreTrainedModel:
    """Load the backbone as a transformers model, from the same files and in the same dtype."""
    source = hub.load_decoder(model.checkpoint.backbone.id, model.decoder.dtype)
    content = dict(model.checkpoint.hf_config)
    kind = published.backbone_type(content)
    config = AutoConfig.for_model(
        kind, **{k: v for k, v in content.items() if k not in ("model_type", "architectures")}
    )
    peer: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.decoder.dtype)
    peer.load_state_dict(export.tensors(source, "ar"), strict=False)
    peer.tie_weights()
    peer.generation_config.do_sample = False
    peer.generation_config.pad_token_id = min(model.limits.end_token_ids, default=0)
    peer.generation_config.eos_token_id = sorted(model.limits.end_token_ids)
    return peer.eval()


def generate(peer: PreTrainedModel, request: Request) -> tuple[list[int], float]:
    """Greedy tokens and the seconds they took, prefill included."""
    prompt = torch.tensor([request.prompt], device=peer.device)
    start = perf_counter()
    with torch.inference_mode():
        out = peer.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.stop.max_new_tokens)
    return out[0, prompt.shape[1] :].tolist(), perf_counter() - start


def _given(truth: OracleResult) -> OracleResult:
    return truth


@dataclass(frozen=True)
class Speed:
    """Tokens per second of plain decoding, ours and the peer's, interleaved per prompt; medians and quartiles."""

    n: int
    ours: float
    peer: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def compare(
    model: Model,
    prompts: list[TaskPrompt],
    options: Options,
    track: Callable[[Iterable[Request]], Iterable[Request]],
) -> tuple[exactness.Comparison, Speed]:
    """Compare its greedy tokens with those of our plain decoding, and the speeds, prefill included. The two take turns
    in being first."""
    peer, comparison = load(model).to(model.decoder.device), exactness.Comparison("transformers")
    plain = model.decoding_config({**options, "cycle": "ar"})
    systems = partial(decode_alone, model, plain), partial(generate, peer)
    requests = exactness.requests(model, [p.prompt for p in prompts], options)
    speeds: list[tuple[float, float]] = []
    for request in requests[:1]:
        short = min(WARM_UP, request.stop.max_new_tokens)
        for system in systems:
            system(replace(request, stop=replace(request.stop, max_new_tokens=short)))
    for number, request in enumerate(track(requests)):
        runs = {index: systems[index](request) for index in ((0, 1) if number % 2 == 0 else (1, 0))}
        ours, theirs = (len(tokens) / seconds for tokens, seconds in (runs[0], runs[1]))
        speeds.append((ours, theirs))
        truth = exactness.oracle(model, request)
        comparison.add(number, truth.tokens, runs[1][0], partial(_given, truth))
    ratios = [ours / theirs for ours, theirs in speeds]
    low, high = np.quantile(ratios, (0.25, 0.75))
    ours, theirs = (float(np.median(side)) for side in zip(*speeds, strict=True))
    return comparison, Speed(len(ratios), ours, theirs, float(np.median(ratios)), (float(low), float(high)))
