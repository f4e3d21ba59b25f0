"""`orthrus bench serve`: load on an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from orthrus.cli._costs import timed_server
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import print_warning, stderr, table_console

if TYPE_CHECKING:
    from orthrus.bench.http_client import Target
    from orthrus.bench.serve import Load, Objectives, Summary

Figure = tuple[str, Callable[["Summary"], float | None], str]


def command(
    url: Annotated[str, typer.Option(help="Where the server is, without /v1.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[
        list[int] | None, typer.Option("--concurrency", "-c", help="Requests in flight (closed loop).", min=1)
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option("--rate", "-r", help="Requests per second (open loop, Poisson).", min=1e-3)
    ] = None,
    prompts: Annotated[
        str, typer.Option(help="A task such as gsm8k, or a JSONL file of `prompt` or `messages`.")
    ] = "spec_bench",
    count: Annotated[int, typer.Option(help="Requests of each load.", min=1)] = 32,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 128,
    body: Annotated[str, typer.Option(help="JSON of further fields, such as '{\"drafts\": false}'.")] = "{}",
    completions: Annotated[bool, typer.Option("--completions", help="Ask /v1/completions instead of chat.")] = False,
    ttft_slo: Annotated[float | None, typer.Option(help="Goodput: most seconds to the first token.")] = None,
    itl_slo: Annotated[
        float | None, typer.Option(help="Goodput: most seconds between tokens, in the mean of a request.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals, and of the requests.")] = 0,
    warmup: Annotated[int, typer.Option(help="Requests before, which do not count.", min=0)] = 2,
    n: Annotated[int, typer.Option("-n", help="Repetitions, interleaved; medians are shown.", min=1)] = 1,
    api_key: Annotated[str | None, typer.Option(help="Key of the server.", envvar="ORTHRUS_API_KEY")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.", show_default="the server's first")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds without data after which a request has failed.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Measure a server under load: throughput, goodput, time to the first token, time between tokens, errors."""
    from orthrus.bench import tasks
    from orthrus.bench.http_client import Target
    from orthrus.bench.serve import Load, Objectives
    from orthrus.prompt_files import parse_object

    fields = {"temperature": 0, "seed": seed, "max_tokens": max_tokens, **parse_object(body, "--body")}
    loads = [*(Load(concurrency=each) for each in concurrency or ()), *(Load(rate=each) for each in rate or ())]
    loaded = [prompt.prompt for prompt in tasks.load(prompts)]
    asked = [loaded[number % len(loaded)] for number in range(count)]
    target = Target(
        url.rstrip("/").removesuffix("/v1"), model or "", fields, _first_key(api_key), not completions, timeout
    )
    loads = loads or [Load(concurrency=each) for each in (1, 4)]
    with timed_server(target.url) as load:
        target, summaries = asyncio.run(_run(target, asked, loads, Objectives(ttft_slo, itl_slo), (seed, warmup, n)))
    if as_json:
        figures = {str(load): [one.as_dict() for one in own] for load, own in zip(loads, summaries, strict=True)}
        print(
            json.dumps({"serve": figures, "provenance": _provenance(target, prompts, seed) | load.as_dict()}, indent=2)
        )
    else:
        table_console().print(_table(target, loads, summaries))
    for line in sorted({line for own in summaries for one in own for line in _doubts(one)}):
        print_warning(f"warning: {line}")


async def _run(
    target: Target, prompts: list[Any], loads: list[Load], objectives: Objectives, runs: tuple[int, int, int]
) -> tuple[Target, list[list[Summary]]]:
    """The summaries of every load; its repetitions are interleaved with those of the others."""
    from dataclasses import replace

    import httpx

    from orthrus.bench import serve
    from orthrus.bench.http_client import model_of

    seed, warmup, repetitions = runs
    if not target.model:
        async with httpx.AsyncClient() as client:
            target = replace(target, model=await model_of(client, target.url, target.api_key))
    if warmup:
        first = [prompts[number % len(prompts)] for number in range(warmup)]
        await serve.measure(target, first, serve.Load(concurrency=1), objectives)
    summaries: list[list[Summary]] = [[] for _ in loads]
    with Progress(console=stderr, transient=True) as bar:
        shown = bar.add_task("requests", total=len(loads) * repetitions * len(prompts))
        for _ in range(repetitions):
            for load, own in zip(loads, summaries, strict=True):
                own.append(
                    await serve.measure(target, prompts, load, objectives, seed=seed, tell=lambda: bar.advance(shown))
                )
    return target, summaries


def _figures() -> list[Figure]:
    """The rows of the table: name, value, format."""

    def of(name: str, part: str) -> Callable[[Summary], float | None]:
        return lambda s: None if getattr(s, name) is None else 1000 * float(getattr(getattr(s, name), part))

    times = [("first token", "first_token"), ("between tokens", "between_tokens"), ("between chunks", "between_chunks"),
             ("request", "latency")]  # fmt: skip
    return [
        ("tokens/s", lambda s: s.tokens_per_second, ".1f"),
        ("requests/s", lambda s: s.requests_per_second, ".2f"),
        ("goodput, requests/s", lambda s: s.goodput, ".2f"),
        *((f"{name} {part}, ms", of(key, part), ".0f") for name, key in times for part in ("p50", "p99")),
        ("tokens per chunk", lambda s: s.tokens_per_chunk, ".2f"),
        ("tokens per pass", lambda s: s.tokens_per_pass, ".2f"),
        ("complete", lambda s: float(s.complete), ".0f"),
        ("errors", lambda s: float(sum(s.errors.values())), ".0f"),
    ]


def _table(target: Target, loads: list[Load], summaries: list[list[Summary]]) -> Table:
    table = Table("", *(str(load) for load in loads), title=f"{target.model} at {target.url}")
    for name, value, form in _figures():
        cells = []
        for own in summaries:
            values = [found for one in own if (found := value(one)) is not None]
            spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
            cells.append(f"{median(values):{form}}{spread}" if values else "")
        if any(cells):
            table.add_row(name, *cells)
    return table


def _doubts(summary: Summary) -> list[str]:
    """What a reader of the figures should know."""
    doubts = [f"{kind}: {number} requests ({summary.load})" for kind, number in summary.errors.items()]
    if summary.counted_by == "chunks":
        doubts.append("the server reports no usage: chunks were counted instead of tokens")
    if summary.wrong_counts:
        doubts.append(f"{summary.wrong_counts} answers stopped at their length with another count ({summary.load})")
    if summary.server_tokens is not None and not summary.errors:
        difference = summary.server_tokens - summary.completion_tokens
        if difference:
            doubts.append(f"the server counted {difference:+d} tokens beyond its usage: others may use it")
    return doubts


def _first_key(keys: str | None) -> str | None:
    """Of several keys, which `orthrus serve` takes in one variable, the first."""
    return next(iter((keys or "").split()), None)


def _provenance(target: Target, prompts: str, seed: int) -> dict[str, Any]:
    """What was measured, and from where."""
    import orthrus
    from orthrus.file_cache import processor_name

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["orthrus", *_without_key(sys.argv[1:])]),
        "url": target.url,
        "model": target.model,
        "body": target.body,
        "prompts": prompts,
        "seed": seed,
        "client": {"orthrus": orthrus.__version__, "cpu": processor_name(), "cores": os.cpu_count()},
    }


def _without_key(words: list[str]) -> list[str]:
    """The command line without its secret."""
    hidden = ["..." if before == "--api-key" else word for before, word in zip(["", *words], words, strict=False)]
    return ["--api-key=..." if word.startswith("--api-key=") else word for word in hidden]
