"""The metrics: vLLM's names, and counts that agree with what was decoded."""

from __future__ import annotations

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

OF_VLLM = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total", "request_success_total",
    "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket", "time_per_output_token_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket", "request_prompt_tokens_sum",
    "request_generation_tokens_sum", "request_params_max_tokens_sum", "spec_decode_num_drafts_total",
    "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
    "spec_decode_num_accepted_tokens_per_pos_total",
}  # fmt: skip


def served(model, requests):
    """The samples after these requests, by name and the label that distinguishes them, and the steps."""

    async def main():
        service = Service(model, ServeSettings(cycle="one-pass", served_model_name="tiny"))
        steps = []
        for request in requests:
            [ticket] = service.submit([request])
            steps += [step async for step in ticket.steps()]
        [cancelled] = service.submit([model.request("abc", {"max_new_tokens": 400})])
        cancelled.cancel()
        await service.drain(0)
        return service.metrics.exposition().decode(), steps

    exposed, steps = asyncio.run(main())
    samples = {}
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny" and labels.pop("engine") == "0"
            samples[(sample.name.removeprefix("vllm:"), *labels.values())] = sample.value
    return samples, steps


def test_counts_agree_with_what_was_decoded(model):
    long = "x" * 300
    requests = [model.request(prompt, {"max_new_tokens": 30}) for prompt in ("abc", long, long)]
    samples, steps = served(model, requests)
    assert {name for name, *_ in samples} >= OF_VLLM
    prompt = sum(len(request.prompt) for request in requests)
    generated = sum(len(step.kept.tokens) for step in steps)
    assert samples["prompt_tokens_total",] == samples["prefix_cache_queries_total",] == prompt
    cached = [step.sequence.statistics.cached_tokens for step in steps if step.finish_reason]
    assert samples["prefix_cache_hits_total",] == sum(cached) > len(long)
    assert samples["generation_tokens_total",] == samples["request_generation_tokens_sum",] == generated == 90
    drafted = [step for step in steps if step.plan.offered]
    assert samples["spec_decode_num_drafts_total",] == len(drafted) > 0
    assert samples["spec_decode_num_draft_tokens_total",] == sum(step.plan.offered for step in drafted)
    accepted = sum(step.kept.accepted for step in steps)
    assert samples["spec_decode_num_accepted_tokens_total",] == accepted > 0
    per_position = {key[1]: value for key, value in samples.items() if key[0].endswith("per_pos_total")}
    assert sum(per_position.values()) == accepted
    assert per_position["0"] == sum(step.kept.accepted > 0 for step in steps)
    assert samples["orthrus:sequence_passes_total",] == sum(s.passes for s in steps if s.finish_reason)
    assert samples["request_success_total", "length"] == 3
    assert samples["request_success_total", "abort"] == 1
    assert samples["time_to_first_token_seconds_count",] == 3
    assert samples["inter_token_latency_seconds_count",] == len(steps) - 3
    assert samples["e2e_request_latency_seconds_count",] == 4
    assert samples["num_requests_running",] == samples["num_requests_waiting",] == 0
    assert samples["kv_cache_usage_perc",] == 0


def test_preemptions_are_counted(model):
    async def main():
        service, exposed = Service(model, ServeSettings(cycle="ar")), []
        exposed.append(service.metrics.exposition().decode())
        tickets = service.submit([model.request("abc", {"max_new_tokens": 400})] * 2)
        steps = tickets[1].steps()
        await anext(steps)
        with service.engine._lock:
            service.engine._preempt(service.engine.running[-1])
        assert len([step async for step in steps]) > 200
        exposed += [service.metrics.exposition().decode() for _ in range(2)]
        await service.drain(0)
        return exposed

    counts = [re.search(r"^vllm:num_preemptions_total{.*} (\S+)$", one, re.MULTILINE)[1] for one in asyncio.run(main())]
    assert counts == ["0.0", "1.0", "1.0"]


def test_two_services_count_apart(model):
    first, second = (Service(model, ServeSettings(cycle="ar")) for _ in range(2))
    first.metrics.count_rejected("queue_full")
    assert 'reason="queue_full"' in first.metrics.exposition().decode()
    assert 'reason="queue_full"' not in second.metrics.exposition().decode()
