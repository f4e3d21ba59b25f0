"""The options of `orthrus serve`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class SharePrefixes(StrEnum):
    """Which requests share the cache of a common prefix."""

    keys = "keys"
    all = "all"
    off = "off"


ModelArgument = Annotated[
    str,
    typer.Argument(help="A name of `orthrus models`, a checkpoint directory, a .gguf file, or a hub id (owner/name)."),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")]
PortOption = Annotated[int, typer.Option(help="Port; 0 for any free one, which is printed.")]
ApiKeyOption = Annotated[
    list[str] | None,
    typer.Option(help="A key that opens the API; may be repeated. Without keys it is open.", envvar="ORTHRUS_API_KEY"),
]
ModelNameOption = Annotated[str | None, typer.Option(help="What clients call the model.", show_default="its id")]
ModelLenOption = Annotated[
    int | None,
    typer.Option(help="Most tokens of a request, prompt included.", min=1, show_default="the model's context"),
]
NumSeqsOption = Annotated[int, typer.Option(help="Most sequences in a pass.", min=1)]
QueueOption = Annotated[int, typer.Option(help="Most requests that wait for a place; more get 429.", min=0)]
SharePrefixesOption = Annotated[
    SharePrefixes,
    typer.Option(help="Which requests share the cache of a common prefix: those of one API key, all, or none."),
]
InfillTokensOption = Annotated[
    int, typer.Option(help="Most tokens around the cursor that /infill and /api/generate with suffix read.")
]
ConnectionsOption = Annotated[
    int | None,
    typer.Option(help="Most connections; more get 503.", min=1, show_default="four times those of an address"),
]
AddressConnectionsOption = Annotated[
    int | None,
    typer.Option(
        help="Most connections of one address; more get 429.", min=1,
        show_default="128, or twice the places and the queue",
    ),
]  # fmt: skip
RequestTimeoutOption = Annotated[float, typer.Option(help="Deadline of a request, in seconds from its arrival.")]
ClientTimeoutOption = Annotated[
    float, typer.Option(help="Seconds that a client may take to send a request, and to read on in an answer.")
]
PassTimeoutOption = Annotated[float, typer.Option(help="Seconds after which /health says that a pass hangs.")]
DrainTimeoutOption = Annotated[
    float, typer.Option(help="Seconds that requests in flight may take after SIGTERM or Ctrl-C.")
]
BodyOption = Annotated[float, typer.Option(help="Largest body of a request, in MB.")]
LogPromptsOption = Annotated[bool, typer.Option("--log-prompts", help="Log the bodies of requests.")]
OriginOption = Annotated[
    list[str] | None, typer.Option(help="Let pages of this origin call the API (CORS); * for all; may be repeated.")
]
AllowedHostOption = Annotated[
    list[str] | None, typer.Option(help="A name that the Host header may hold; may be repeated.")
]
