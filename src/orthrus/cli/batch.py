"""`orthrus batch`: answer the requests of a file, with a model in this process or with a server, and resume."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus.cli import _sampling as sampling
from orthrus.cli._batch.output import BatchOutput
from orthrus.cli._batch.progress import BatchProgress
from orthrus.cli._batch.requests import BatchRequest, requests_of
from orthrus.cli._batch.runner import BatchRunner, BatchStopped
from orthrus.cli._chat.options import ModelOption
from orthrus.cli._costs import measure_costs
from orthrus.cli._limits import apply_limits
from orthrus.cli._server import (
    CONNECT_SECONDS,
    READ_SECONDS,
    ApiKeyOption,
    ServerClient,
    ServerError,
    UrlOption,
    bearer,
)
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CacheOption,
    CycleOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    QuantizeOption,
    load_model,
    missing_extra,
    print_notice,
    print_warning,
    stderr,
    without_none,
)

if TYPE_CHECKING:
    import httpx

    from orthrus.api import Model

    Clients = AbstractAsyncContextManager[httpx.AsyncClient]

DEFAULT_MODEL, MAX_EXIT_CODE = "smollm2-demo", 100
InputArgument = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT.jsonl",
        help="Lines of OpenAI's batch API (custom_id, method, url, body), or prompts as `generate --file` reads them;"
        " `-` is standard input.",
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Where answers are appended; those already in it are not made again.")
]
PromptTokensOption = Annotated[
    int, typer.Option("--max-tokens", "--max-new-tokens", "-n", help="For lines that are only prompts.", min=1)
]
PromptTemperatureOption = Annotated[
    float, typer.Option("--temperature", help="For lines that are only prompts; 0 is greedy.")
]
PromptSeedOption = Annotated[int | None, typer.Option("--seed", help="For lines that are only prompts.")]
ConcurrencyOption = Annotated[int, typer.Option(help="With --url: requests in flight.", min=1)]
SizeOption = Annotated[int, typer.Option(help="Without --url: sequences decoded together.", min=1)]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Send what failed in an earlier run again.")]
NameOption = Annotated[
    str | None, typer.Option(help="What the bodies call the model.", show_default="the model's own id")
]


def command(
    file: InputArgument,
    output: OutputOption,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    concurrency: ConcurrencyOption = 8,
    batch_size: SizeOption = 8,
    max_tokens: PromptTokensOption = 256,
    temperature: PromptTemperatureOption = 0.0,
    seed: PromptSeedOption = None,
    retry_failed: RetryOption = False,
    served_model_name: NameOption = None,
    cycle: CycleOption = None,
    rule: sampling.RuleOption = "exact",
    threads: sampling.ThreadsOption = None,
    ctx_size: sampling.ContextOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Answer all requests of a file. The exit code is the number of requests that failed, at most 100.

    Interrupted, it goes on with the same command.
    """
    _check_whose_model(url, rule, adapter, cycle, quantize)
    defaults = without_none(max_tokens=max_tokens, temperature=temperature, seed=seed)
    asked = served_model_name or (model if url else None)
    requests = requests_of(*_read(file), {**defaults, **_model_of(url, api_key, asked)})
    with BatchOutput(output, retry_failed=retry_failed) as kept:
        waiting = [request for request in requests if request.custom_id not in kept.failures]
        _say_what_is_there(kept, len(requests), len(waiting))
        if waiting:
            client: Clients
            if url is not None:
                client = remote_client(url, api_key, concurrency)
            else:
                apply_limits(ctx_size, threads)
                name = model or DEFAULT_MODEL
                loaded = load_model(name, adapter, dtype, device, allow_other_backbone, quantize, cache, ctx_size)
                client = _local(loaded, batch_size, cycle, rule, served_model_name)
                concurrency = 2 * batch_size  # the next prompts wait in the engine
            _run(client, waiting, concurrency, kept, total=len(requests))
        failures = sum(kept.failures[request.custom_id] for request in requests)
    print(f"{len(requests) - failures} of {len(requests)} requests are answered in {output}")
    if failures:
        why = f"{failures} failed: --retry-failed sends them again. The first, {kept.first_problem}"
        print_warning(why)
        raise typer.Exit(min(failures, MAX_EXIT_CODE))


def _read(file: Path) -> tuple[bytes, str]:
    """The contents of the input, and its name. Raises ValueError if there is no such file."""
    if str(file) == "-":
        return sys.stdin.buffer.read(), "standard input"
    if not file.exists():
        raise ValueError(f"{file}: no such file; give a JSONL file, or - for standard input")
    return file.read_bytes(), str(file)


def _check_whose_model(url: str | None, rule: str, *local: object) -> None:
    """Raise ValueError where options for a model in this process are given for a server."""
    if url is not None and (rule != "exact" or any(option is not None for option in local)):
        raise ValueError(
            "with --url the model is the server's: --adapter, --cycle, --rule and --quantize are for a model in this"
            " process"
        )


def _model_of(url: str | None, api_key: str | None, name: str | None) -> dict[str, str]:
    """The model field for lines that are only prompts: `name`, or the first model of a server. Raises ValueError."""
    if url is None or name is not None:
        return {} if name is None else {"model": name}
    server = ServerClient(url, api_key)
    try:
        return {"model": str(server.models()[0]["id"])}
    except (ServerError, IndexError) as error:
        raise ValueError(str(error) or f"{url} lists no models") from error
    finally:
        server.close()


@asynccontextmanager
async def remote_client(url: str, api_key: str | None, concurrency: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with as many connections as there are requests in flight."""
    import httpx

    async with httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=bearer(api_key),
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=concurrency),
    ) as client:
        yield client


def _local(model: Model, batch_size: int, cycle: str | None, rule: str, name: str | None) -> Clients:
    try:
        from orthrus.cli._batch.local import local_client
    except ModuleNotFoundError as error:
        raise missing_extra("a batch", error, "serve") from None
    print_notice(model)
    if model.decoding_config({"cycle": cycle, "rule": rule}).cycle == "auto":
        measure_costs(model)
    return local_client(model, batch_size=batch_size, cycle=cycle, rule=rule, name=name)


def _say_what_is_there(kept: BatchOutput, total: int, waiting: int) -> None:
    if kept.repaired:
        stderr.print("the last record was cut off when an earlier run ended: it is removed, and its request sent again")
    if waiting < total:
        stderr.print(f"resuming: {total - waiting} of {total} requests are already answered")


def _run(client: Clients, requests: list[BatchRequest], concurrency: int, kept: BatchOutput, *, total: int) -> None:
    """Send the requests and keep the records. Exits where the user or a server ends it."""
    earlier = total - len(requests)

    def keep(record: dict[str, Any]) -> None:
        kept.append(record)
        progress.count(record)

    async def run() -> None:
        async with client as opened:
            await BatchRunner(opened, concurrency, keep).run(requests)

    try:
        with BatchProgress(total, earlier) as progress:
            asyncio.run(run())
    except (BatchStopped, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        print_warning(f"{why}; {progress}. The same command goes on from here.")
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    stderr.print(f"{progress}", markup=False)
