"""`orthrus serve`: an OpenAI-compatible HTTP server, with a playground."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING

from orthrus.cli import _serving as options
from orthrus.cli._costs import measure_costs
from orthrus.cli._defaults import described
from orthrus.cli._limits import set_threads
from orthrus.cli._sampling import RuleOption, ThreadsOption
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
)

if TYPE_CHECKING:
    import socket

    from orthrus.serving.service import Service
    from orthrus.serving.settings import ServeSettings

QUESTION = "What is the capital of France?"
EXPOSED = (
    "warning: other machines can reach this server, and no API key is set: anyone among them can use it."
    " Set one with --api-key or ORTHRUS_API_KEY, or listen on 127.0.0.1"
)


def command(
    model: options.ModelArgument = "smollm2-demo",
    host: options.HostOption = "127.0.0.1",
    port: options.PortOption = 8000,
    api_key: options.ApiKeyOption = None,
    served_model_name: options.ModelNameOption = None,
    max_model_len: options.ModelLenOption = None,
    max_num_seqs: options.NumSeqsOption = 8,
    max_queue: options.QueueOption = 64,
    share_prefixes: options.SharePrefixesOption = options.SharePrefixes.keys,
    infill_tokens: options.InfillTokensOption = 1024,
    max_connections: options.ConnectionsOption = None,
    connections_per_ip: options.AddressConnectionsOption = None,
    request_timeout: options.RequestTimeoutOption = 600.0,
    client_timeout: options.ClientTimeoutOption = 60.0,
    pass_timeout: options.PassTimeoutOption = 120.0,
    drain_timeout: options.DrainTimeoutOption = 60.0,
    max_body_mb: options.BodyOption = 8.0,
    log_prompts: options.LogPromptsOption = False,
    allow_origin: options.OriginOption = None,
    allowed_host: options.AllowedHostOption = None,
    adapter: AdapterOption = None,
    cycle: CycleOption = None,
    rule: RuleOption = "exact",
    threads: ThreadsOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Serve a model over HTTP by OpenAI's API, and a page to try it on. SIGTERM and Ctrl-C finish what is in flight."""
    _need_extra()
    from orthrus.serving import http, logs
    from orthrus.serving.service import Service
    from orthrus.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, api_keys=tuple(api_key or ()), served_model_name=served_model_name,
        max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_queue=max_queue,
        share_prefixes=share_prefixes.value, infill_tokens=infill_tokens, max_connections=max_connections,
        connections_per_ip=connections_per_ip,
        request_timeout=request_timeout, client_timeout=client_timeout, pass_timeout=pass_timeout,
        drain_timeout=drain_timeout, max_body_bytes=int(min(max_body_mb, 1e6) * 1e6), log_prompts=log_prompts,
        allowed_origins=tuple(allow_origin or ()), allowed_hosts=tuple(allowed_host or ()), cycle=cycle, rule=rule,
    )  # fmt: skip
    set_threads(threads)
    with http.bind(settings) as bound:  # before the model is loaded, which takes longer than to find a port in use
        loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache, max_model_len)
        print_notice(loaded)
        if loaded.decoding_config(settings.engine_options).cycle == "auto":
            measure_costs(loaded)
        service = Service(loaded, settings)
        if not settings.local and not settings.api_keys:
            print_warning(EXPOSED)
        with logs.on_stderr():
            asyncio.run(_serve(service, bound))


async def _serve(service: Service, bound: socket.socket) -> None:
    from orthrus.serving import http
    from orthrus.serving.app import create_app

    port, app = bound.getsockname()[1], create_app(service)
    gc.collect()
    gc.freeze()  # a full collection of all that was loaded stops every request for a tenth of a second
    server = http.Server(app, service, lambda: print(_welcome(service, port), flush=True))
    await server.serve([bound])


def _welcome(service: Service, port: int) -> str:
    """Where the server is, how it samples, and a first request."""
    url = _url(service.settings, port)
    name, most = json.dumps(service.model_name), service.settings.max_num_seqs
    key = "\n    -H 'Authorization: Bearer YOUR_KEY' \\" if service.settings.api_keys else ""
    return f"""\
serving {service.model_name} at {url}
  limits:     {service.max_model_len} tokens of context, {most} request{"s" * (most != 1)} at once
  sampling:   {described(service.model.checkpoint.default_sampling)}, where a request does not say
  playground: {url}/
  OpenAI API: {url}/v1
  Ctrl-C finishes what is in flight and ends; twice ends at once. Try it:

  curl {url}/v1/chat/completions \\{key}
    -H 'Content-Type: application/json' \\
    -d '{{"model": {name}, "messages":
      [{{"role": "user", "content": "{QUESTION}"}}]}}'
"""


def _url(settings: ServeSettings, port: int) -> str:
    """The URL for this machine: a server on all addresses is reached on that of the machine itself."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _need_extra() -> None:
    """Raise ValueError if the packages of the server are not installed."""
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise missing_extra("the server", error, "serve") from None
    del fastapi, prometheus_client, uvicorn
