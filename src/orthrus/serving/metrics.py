"""Prometheus metrics under vLLM's names, so that dashboards made for vLLM work; its other names begin with `orthrus:`.

Every service has a registry of its own. All times are in seconds, on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orthrus.decoding.cycle import Step

LABELS = ("model_name", "engine")
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(float(mantissa * 10**power) for power in range(6) for mantissa in (1, 2, 5))
FINISHED = {"cancelled": "abort"}
"""Finish reasons that vLLM calls otherwise."""


@dataclass(frozen=True)
class Load:
    """What the engine holds at this moment. cache: the part of its pages that sequences hold, 0 to 1. preemptions: how
    often it has taken the pages of a sequence for others, since it started."""

    running: int
    waiting: int
    cache: float
    preemptions: int


@dataclass
class Progress:
    """What has been counted of one request, which `arrived` when its head was read. Times are those of `perf_counter`;
    None before the first token."""

    prompt_tokens: int
    max_tokens: int
    arrived: float
    generated: int = 0
    passes: int = 0
    cached_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None


class Metrics:
    """The metrics of one service. `load` is asked at every scrape."""

    def __init__(self, model_name: str, load: Callable[[], Load]) -> None:
        self.registry = CollectorRegistry()
        self._labels, self._load, self._preempted = (model_name, "0"), load, 0
        self._gauge("vllm:num_requests_running", "Requests that are prefilled or decoded.", lambda: load().running)
        self._gauge("vllm:num_requests_waiting", "Requests that wait for a place.", lambda: load().waiting)
        self._gauge("vllm:kv_cache_usage_perc", "Part of the KV cache in use; 1 is all of it.", lambda: load().cache)
        self._preemptions = self._counter("vllm:num_preemptions", "Sequences whose pages were taken for others.")
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Generated tokens.")
        self._prefix_queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.")
        self._prefix_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens that the cache had.")
        self._drafts = self._counter("vllm:spec_decode_num_drafts", "Passes of a sequence that verified drafts.")
        self._draft_tokens = self._counter("vllm:spec_decode_num_draft_tokens", "Drafts that were verified.")
        self._accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Drafts that were accepted.")
        self._accepted_at = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted drafts by their position in the draft.",
            (*LABELS, "position"), registry=self.registry,
        )  # fmt: skip
        self._passes = self._counter("orthrus:sequence_passes", "Passes, counted for each sequence in them.")
        self._success = Counter(
            "vllm:request_success", "Requests that have ended.", (*LABELS, "finished_reason"), registry=self.registry
        )
        for reason in ("stop", "length", "abort", "timeout", "error"):
            self._success.labels(*self._labels, reason)  # so that rates start at zero
        self._rejected = Counter(
            "orthrus:requests_rejected", "Requests that were not admitted.", (*LABELS, "reason"), registry=self.registry
        )
        self._first_token = self._histogram("vllm:time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN)
        between = "Time between two passes that gave a request tokens."
        self._between = [
            self._histogram("vllm:inter_token_latency_seconds", between, BETWEEN_TOKENS),
            self._histogram("vllm:time_per_output_token_seconds", f"{between} The older name.", BETWEEN_TOKENS),
        ]
        self._per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time of a token after the first.", BETWEEN_TOKENS
        )
        self._latency = self._histogram("vllm:e2e_request_latency_seconds", "Time from arrival to end.", LATENCY)
        self._prompt_sizes = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._answer_sizes = self._histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
        self._max_tokens = self._histogram("vllm:request_params_max_tokens", "The limit of a request.", TOKENS)

    def count_step(self, progress: Progress, step: Step) -> None:
        """Count what a request gained in a pass, in the metrics and in its progress."""
        now = perf_counter()
        if progress.first_token is None and step.kept.tokens:
            progress.first_token = now
            progress.cached_tokens = step.sequence.statistics.cached_tokens  # set before its first pass, and kept
            self._first_token.observe(now - progress.arrived)
            self._prompt_tokens.inc(progress.prompt_tokens)
            self._prefix_queries.inc(progress.prompt_tokens)
            self._prefix_hits.inc(progress.cached_tokens)
        elif step.kept.tokens and progress.last_token is not None:
            for histogram in self._between:
                histogram.observe(now - progress.last_token)
        if step.kept.tokens:
            progress.last_token = now
        progress.generated += len(step.kept.tokens)
        self._generation_tokens.inc(len(step.kept.tokens))
        self._passes.inc(step.passes - progress.passes)
        progress.passes = step.passes
        if step.plan.offered:
            self._drafts.inc()
            self._draft_tokens.inc(step.plan.offered)
            self._accepted.inc(step.kept.accepted)
            for position in range(step.kept.accepted):
                self._accepted_at.labels(*self._labels, str(position)).inc()

    def count_end(self, progress: Progress, finish_reason: str) -> None:
        """Count a request that has ended. finish_reason: that of the engine, or "error"."""
        self._success.labels(*self._labels, FINISHED.get(finish_reason, finish_reason)).inc()
        self._latency.observe(perf_counter() - progress.arrived)
        self._prompt_sizes.observe(progress.prompt_tokens)
        self._answer_sizes.observe(progress.generated)
        self._max_tokens.observe(progress.max_tokens)
        if progress.generated > 1 and progress.first_token is not None and progress.last_token is not None:
            self._per_token.observe((progress.last_token - progress.first_token) / (progress.generated - 1))

    def count_rejected(self, reason: str) -> None:
        """Count a request that was refused before it reached the engine."""
        self._rejected.labels(*self._labels, reason).inc()

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        before, self._preempted = self._preempted, self._load().preemptions
        self._preemptions.inc(self._preempted - before)
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, LABELS, registry=self.registry).labels(*self._labels).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, LABELS, registry=self.registry, buckets=buckets).labels(*self._labels)
