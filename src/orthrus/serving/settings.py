"""The settings of a server, checked where they are made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from math import isfinite

from orthrus.options import Options

MIN_INFILL_TOKENS = 16
SHARING = ("keys", "all", "off")
"""Which requests may share the cache of a common prefix."""


@dataclass(frozen=True)
class ServeSettings:
    """How to serve a model. Times are in seconds.

    api_keys: any of them opens the API; without keys it is open. served_model_name: what clients call the model (its
    own id by default). max_model_len: the most tokens of a request, prompt and answer together. max_num_seqs: the most
    sequences in a pass. max_queue: the most requests that wait for one of those places. share_prefixes: which requests
    share the cache of a common prefix: those of one API key, all, or none. connections_per_ip,
    max_connections: the most connections of one address and of all (by default twice as many as there are places and
    waiting requests, at least 128, and four times that). request_timeout: the deadline of a request that sets none,
    from its arrival. client_timeout: how long a client may take to send a request, and to read on in an answer.
    infill_tokens: the most tokens of a file that requests of editors read. pass_timeout: how long a pass may take
    before `/health` says that it hangs. drain_timeout: how long a shutdown waits for the requests in flight.
    allowed_origins: pages of other origins that may call the API (CORS). allowed_hosts: names that a Host header may
    hold, beside localhost.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_name: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 8
    max_queue: int = 64
    share_prefixes: str = "keys"
    infill_tokens: int = 1024
    max_connections: int | None = None
    connections_per_ip: int | None = None
    request_timeout: float = 600.0
    client_timeout: float = 60.0
    pass_timeout: float = 120.0
    drain_timeout: float = 60.0
    max_body_bytes: int = 8 * 2**20
    log_prompts: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cycle: str | None = None
    rule: str = "exact"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must lie in 0 (any free port) to 65535, not {self.port}")
        if any(not key or not key.isascii() or key != key.strip() for key in self.api_keys):
            raise ValueError("an API key must be ASCII text without spaces around it, and not empty")
        for name in (
            "max_model_len", "max_num_seqs", "max_body_bytes", "max_connections", "connections_per_ip",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.share_prefixes not in SHARING:
            raise ValueError(f"share_prefixes must be one of {', '.join(SHARING)}, not {self.share_prefixes!r}")
        if self.infill_tokens < MIN_INFILL_TOKENS:
            raise ValueError(f"infill_tokens must be at least {MIN_INFILL_TOKENS}, not {self.infill_tokens}")
        if self.max_queue < 0:
            raise ValueError(f"max_queue must not be negative, got {self.max_queue}")
        for field in fields(self):
            if field.name.endswith("_timeout"):
                seconds = getattr(self, field.name)
                if not isfinite(seconds) or seconds < 0 or (seconds == 0 and field.name != "drain_timeout"):
                    raise ValueError(f"{field.name} must be a positive number of seconds, not {seconds}")
        for origin in self.allowed_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#]+", origin):
                raise ValueError(f"an origin looks like https://example.com, or is * for all; not {origin!r}")

    @property
    def engine_options(self) -> Options:
        """The options of `Model.engine`."""
        return {"cycle": self.cycle, "rule": self.rule, "batch_size": self.max_num_seqs}

    @property
    def address_limit(self) -> int:
        """The most connections of one address. By default no client reaches it before the queue is full."""
        return self.connections_per_ip or max(128, 2 * (self.max_num_seqs + self.max_queue))

    @property
    def connection_limit(self) -> int:
        """The most connections of all addresses together."""
        return self.max_connections or 4 * self.address_limit

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
