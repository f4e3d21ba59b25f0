"""Run a case and compare every answer with the oracle (`exact`), or with the sequence decoded alone (`rejection`)."""

from __future__ import annotations

import contextlib
import importlib
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Barrier
from unittest import mock

import cases
import tiny
import torch

from orthrus.decoding.cycles import Drafting
from orthrus.decoding.engine import generate
from orthrus.decoding.reference import autoregress

cycle_module, generate_module = (importlib.import_module(f"orthrus.decoding.{name}") for name in ("cycle", "engine"))
OTHER_SEEDS = 12
"""Number of further seeds tried after a difference under `rejection`. If none shows it again, it was rounding: a
diffusion row in a batch equals that of a sequence alone only up to rounding."""


@dataclass
class Findings:
    """Results of cases: counts by axis, and every wrong answer."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def run(case):
    """Run all jobs of a case."""
    findings, before = Findings(), torch.get_num_threads()
    try:
        runner = cases.build(case.setup)
        _count_case(findings.counts, case)
        if not runner.exact:
            findings.counts["models whose row layout is not exact"] += 1
            return findings
        judge = cases.build(case.setup) if case.together > 1 else runner
        if case.together > 1:  # the threads must be the first to use this runner
            answers = _together(runner, case)
        truths = [
            autoregress(judge, request, case.limits, request.sampling.seed, tiny.text_of) for request in case.requests
        ]
        if case.together == 1:
            answers = [_attempt(runner, case, job, truths) for job in case.jobs]
        for job, answer in zip(case.jobs, answers, strict=True):
            _judge(runner, case, job, answer, truths, findings)
        again = replace(case.jobs[0], quality=None, shapes=None)
        _judge(runner, case, again, _attempt(runner, case, again, truths), truths, findings)
    except Exception:
        findings.failures.append(f"{case.setup}\n{traceback.format_exc()}")
    finally:
        torch.set_num_threads(before)
    return findings


def _together(runner, case):
    """Run the jobs from several Python threads that start at the same time."""
    start = Barrier(case.together)

    def several(n):
        start.wait(timeout=60)
        return [(i, _attempt(runner, case, case.jobs[i])) for i in range(n, len(case.jobs), case.together)]

    with ThreadPoolExecutor(case.together) as pool:
        by_job = dict(answer for answers in pool.map(several, range(case.together)) for answer in answers)
    return [by_job[n] for n in range(len(case.jobs))]


def _attempt(runner, case, job, truths=None):
    """The answer of a job, or the traceback of its exception."""
    torch.set_num_threads(job.threads)
    try:
        return _decode(runner, case, job, truths)
    except Exception:
        return traceback.format_exc()


def _decode(runner, case, job, truths=None):
    """Tokens, finish reason and text by request."""
    answers = {}
    with contextlib.ExitStack() as patches:
        if job.quality is not None:
            _script(patches, job.quality, [truths[n].tokens for n in job.order])
        if job.shapes is not None:
            width = job.config.width or runner.diffusion.block_size
            drafting = Drafting(width, planner=tiny.RandomPlanner(job.shapes, width))
            patches.enter_context(mock.patch.object(generate_module, "drafting_of", lambda *_: drafting))
        requests = [case.requests[n] for n in job.order]
        for step in generate(runner, requests, job.config, case.limits, tiny.text_of, job.costs):
            sequence, number = step.sequence, job.order[step.sequence.index]
            if job.cancel is not None and sequence.finish_reason is None:
                which, after = job.cancel
                if number == which and len(sequence.tokens) >= after:
                    sequence.finish("cancelled")
            if sequence.finish_reason is not None:
                answers[number] = (list(sequence.tokens), sequence.finish_reason, sequence.text.text)
    return answers


def _script(patches, quality, truths):
    for name in ("two_pass", "auto"):
        module = importlib.import_module(f"orthrus.decoding.cycles.{name}")
        patches.enter_context(mock.patch.object(module, "draft_pass", tiny.scripted(quality, truths)))
    patches.enter_context(mock.patch.object(cycle_module, "drafts_from_blocks", tiny.scripted_ahead(quality, truths)))


def _judge(runner, case, job, answer, truths, findings):
    """Count a job, and record what is wrong with its answer."""
    _count_job(findings.counts, job)
    if isinstance(answer, str):
        findings.failures.append(f"{case.setup}\n{job} raised\n{answer}")
        return
    for number, request in enumerate(case.requests):
        if number not in answer:
            findings.failures.append(f"{case.setup}\n{job} never finished request {number}")
            continue
        tokens, reason, text = answer[number]
        findings.counts["decodings"] += 1
        findings.counts["tokens"] += len(tokens)
        truth = truths[number].tokens, truths[number].finish_reason
        if job.config.rule == "rejection" and not request.sampling.greedy:
            truth = _alone(runner, case, job, number)
        expected = truth
        if reason == "cancelled":
            expected = truth[0][: len(tokens)], reason
        if (tokens, reason) != expected:
            if (
                job.config.rule == "rejection"
                and not request.sampling.greedy
                and not _recurs(runner, case, job, number)
            ):
                findings.counts["differences under rejection that no other seed reproduces (rounding)"] += 1
                continue
            findings.failures.append(
                f"{case.setup}\n{job}\nrequest {number}: {len(request.prompt)} tokens, {request.sampling},"
                f" {request.stop}\nexpected {expected}\ngot      {(tokens, reason)}"
            )
        elif text != _text(case, request, tokens):
            findings.failures.append(f"{case.setup}\n{job}\nrequest {number}: text {text!r} of tokens {tokens}")


def _text(case, request, tokens):
    """The text of tokens without the end token, cut at the first stop string."""
    ends = case.limits.end_token_ids | request.stop.stop_token_ids
    text = tiny.text_of([token for token in tokens if token not in ends])
    cuts = [text.find(stop) for stop in request.stop.stop_strings if stop in text]
    return text[: min(cuts)] if cuts else text


def _alone(runner, case, job, number):
    """Tokens and finish reason of a request that is decoded alone."""
    alone = replace(job, config=replace(job.config, batch_size=1), order=(number,), cancel=None)
    tokens, reason, _ = _decode(runner, case, alone)[number]
    return tokens, reason


def _recurs(runner, case, job, number):
    """Whether a difference under `rejection` also occurs with other seeds."""
    for seed in range(OTHER_SEEDS):
        requests = [replace(r, sampling=replace(r.sampling, seed=seed)) for r in case.requests]
        other = replace(case, requests=tuple(requests))
        answers = _decode(runner, other, replace(job, cancel=None))
        if answers[number][:2] != _alone(runner, other, job, number):
            return True
    return False


def _count_case(counts, case):
    counts["cases"] += 1
    setup = case.setup
    for axis, value in (
        ("family", setup.family), ("dtype", setup.dtype), ("kernels", setup.kernels),
        ("poison", setup.poison), ("Python threads", case.together),
    ):  # fmt: skip
        counts[f"{axis} {value}"] += 1
    for request in case.requests:
        length = len(request.prompt)
        counts[f"prompts {'up to 64' if length <= 64 else 'up to 512' if length <= 512 else 'over 512'}"] += 1
        counts[f"requests {'greedy' if request.sampling.greedy else 'sampled'}"] += 1


def _count_job(counts, job):
    drafts = "scripted" if job.quality is not None else "own"
    for axis, value in (
        ("cycle", job.config.cycle), ("rule", job.config.rule), ("batch size", job.config.batch_size),
        ("threads", job.threads), ("drafts", drafts), ("shapes", "any" if job.shapes is not None else "planned"),
        ("cancelled", job.cancel is not None),
    ):  # fmt: skip
        counts[f"{axis} {value}"] += 1
