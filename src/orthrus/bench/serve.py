"""Load on an OpenAI-compatible server: so many requests at once, or so many per second, and what became of them.

Closed loop: a fixed number of requests is in flight; the next one is sent when one ends. Open loop: requests arrive by
a Poisson process, whatever the server does, and waiting counts from the arrival (so a slow server cannot hide it).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import httpx

from orthrus.bench.http_client import Outcome, Target, ask, counters

TOKENS, PASSES = "vllm:generation_tokens_total", "orthrus:sequence_passes_total"
DRAFTS, ACCEPTED = "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"


@dataclass(frozen=True)
class Load:
    """One of the two: `concurrency` requests in flight, or `rate` requests per second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency else f"{self.rate:g} per second"


@dataclass(frozen=True)
class Objectives:
    """What makes a request count for goodput, in seconds; None for no limit. per_token: the mean after the first."""

    first_token: float | None = None
    per_token: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """Whether a complete answer came in time."""
        first, each = self.first_token, self.per_token
        return (first is None or outcome.first_token <= first) and (each is None or (outcome.per_token or 0.0) <= each)


@dataclass(frozen=True)
class Percentiles:
    """Median and 99th percentile, in seconds."""

    p50: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Percentiles | None:
        """None where there are no values."""
        return Percentiles(percentile(values, 0.5), percentile(values, 0.99)) if values else None


@dataclass(frozen=True)
class Summary:
    """What a load gave. Latencies are of complete answers; None where there is nothing to measure.

    goodput: requests per second that met the objectives. between_tokens: mean of each request; between_chunks: every
    gap. counted_by: where token counts come from. wrong_counts: answers cut off by their length whose count is not that
    length. server_tokens: the tokens that the server's metrics counted meanwhile. accepted: the part of the drafts.
    """

    load: str
    seconds: float
    complete: int
    errors: dict[str, int]
    requests_per_second: float
    goodput: float
    tokens_per_second: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    counted_by: str
    wrong_counts: int
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    between_chunks: Percentiles | None
    latency: Percentiles | None
    tokens_per_chunk: float | None
    server_tokens: int | None = None
    tokens_per_pass: float | None = None
    accepted: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of the values lies, interpolated."""
    ordered = sorted(values)
    at = part * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


async def measure(
    target: Target, prompts: Sequence[Any], load: Load, objectives: Objectives, *, seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> Summary:  # fmt: skip
    """Send every prompt under a load, and sum up. `tell` is called as each request ends."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits) as client:
        before, start = await counters(client, target.url), perf_counter()
        send = _closed(load.concurrency, prompts) if load.concurrency else _open(load.rate or 1.0, prompts, seed)
        outcomes = await send(client, target, tell)
        seconds = perf_counter() - start
        after = await counters(client, target.url)
    gained = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return summarise(str(load), outcomes, seconds, objectives, target.body.get("max_tokens"), gained)


_Send = Callable[[httpx.AsyncClient, Target, Callable[[], None]], Any]


def _closed(concurrency: int, prompts: Sequence[Any]) -> _Send:
    async def send(client: httpx.AsyncClient, target: Target, tell: Callable[[], None]) -> list[Outcome]:
        waiting, outcomes = iter(prompts), []

        async def worker() -> None:
            for prompt in waiting:
                outcomes.append(await ask(client, target, prompt, perf_counter()))
                tell()

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return outcomes

    return send


def _open(rate: float, prompts: Sequence[Any], seed: int) -> _Send:
    async def send(client: httpx.AsyncClient, target: Target, tell: Callable[[], None]) -> list[Outcome]:
        due = start = perf_counter()

        async def one(prompt: Any, arrival: float) -> Outcome:
            await asyncio.sleep(max(0.0, arrival - perf_counter()))
            outcome = await ask(client, target, prompt, arrival)
            tell()
            return outcome

        calls = []
        for prompt, gap in zip(prompts, arrivals(rate, len(prompts), seed), strict=True):
            due = start + gap
            calls.append(one(prompt, due))
        return list(await asyncio.gather(*calls))

    return send


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """When requests arrive, in seconds from the start: a Poisson process of `rate` per second."""
    generator, at, times = random.Random(seed), 0.0, []
    for _ in range(count):
        at += generator.expovariate(rate)
        times.append(at)
    return times


def summarise(
    load: str, outcomes: Sequence[Outcome], seconds: float, objectives: Objectives, max_tokens: int | None,
    gained: dict[str, float],
) -> Summary:  # fmt: skip
    """Sum up. gained: how much the counters of the server grew meanwhile."""
    complete = [outcome for outcome in outcomes if outcome.error is None]
    tokens = sum(outcome.tokens for outcome in complete)
    gaps = [later - earlier for o in complete for earlier, later in zip(o.chunks, o.chunks[1:], strict=False)]
    chunks = sum(len(outcome.chunks) for outcome in complete)
    cut_off = [outcome for outcome in complete if outcome.finish_reason == "length"]
    return Summary(
        load=load,
        seconds=seconds,
        complete=len(complete),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        requests_per_second=len(complete) / seconds,
        goodput=sum(objectives.met_by(outcome) for outcome in complete) / seconds,
        tokens_per_second=tokens / seconds,
        prompt_tokens=sum(outcome.prompt_tokens for outcome in complete),
        cached_tokens=sum(outcome.cached_tokens for outcome in complete),
        completion_tokens=tokens,
        counted_by="usage" if all(o.completion_tokens is not None for o in complete) else "chunks",
        wrong_counts=sum(o.completion_tokens not in (None, max_tokens) for o in cut_off) if max_tokens else 0,
        first_token=Percentiles.of([outcome.first_token for outcome in complete]),
        between_tokens=Percentiles.of([o.per_token for o in complete if o.per_token is not None]),
        between_chunks=Percentiles.of(gaps),
        latency=Percentiles.of([outcome.latency for outcome in complete]),
        tokens_per_chunk=tokens / chunks if chunks else None,
        **_from_server(gained),
    )


def _from_server(gained: dict[str, float]) -> dict[str, Any]:
    """What the metrics of the server say; nobody else may have used it. A server of vLLM's metrics that counts no
    passes made one token in each beside the accepted drafts."""
    tokens, drafts, accepted = gained.get(TOKENS), gained.get(DRAFTS), gained.get(ACCEPTED)
    if not tokens:
        return {}
    passes = gained.get(PASSES) or tokens - (accepted or 0.0)
    return {
        "server_tokens": int(tokens),
        "tokens_per_pass": tokens / passes if passes and accepted is not None else None,
        "accepted": accepted / drafts if drafts and accepted is not None else None,
    }
